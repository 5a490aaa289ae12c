"""The few messages that may cross a channel: plain, typed data, encoded as MessagePack.

Times named `*_at_s` are `time.monotonic()`, which all processes of one machine share on Linux;
times named `*_ms` are UTC milliseconds since 1970 and go into records.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Task(msgspec.Struct, frozen=True, tag="task"):
    """Supervisor → child: compute this request and answer it. `number` names it on this channel; `link`: the address of
    the link that its gateway offers (docs/api.md), `traceparent`: for the upstream; "" where there is none. is_last: it took
    the last slot, so that others wait for it to be Computed."""

    number: int
    request_id: str
    stream: bool
    endpoint: str
    data: bytes
    received_at_s: float
    deadline_at_s: float
    attempt: int
    link: str = ""
    traceparent: str = ""
    is_last: bool = False


class Refuse(msgspec.Struct, frozen=True, tag="refuse"):
    """Supervisor → any child: deliver this final error, on behalf of whoever cannot."""

    number: int
    request_id: str
    stream: bool
    endpoint: str
    error: dict[str, Any]
    received_at_s: float
    deadline_at_s: float
    attempt: int
    link: str = ""


class Lease(msgspec.Struct, frozen=True, tag="lease"):
    """Supervisor → child: I live, and you may go on for a while (backends/child.py says for how long)."""


class Probe(msgspec.Struct, frozen=True, tag="probe"):
    """Supervisor → child: try the upstream, on nobody's behalf. `asks`: with a request of one token, where it is enough
    otherwise that it can be connected to."""

    asks: bool


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Supervisor → child: nothing more will come; end."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Child → supervisor: booted. `slots`: requests it can run at once; `pids`: its model server's processes."""

    slots: int
    pids: list[int] = []


class Unusable(msgspec.Struct, frozen=True, tag="unusable"):
    """Child → supervisor, before it exits: why it cannot serve. `permanent`: another start would end the same."""

    message: str
    permanent: bool


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    """Child → supervisor: a lease was read. `overdue`: the requests whose worker has shown nothing past the time that any
    step of it may take, so that it hangs. `produced`: pieces of output, a token each where the upstream streams them one by
    one, of all requests since the child began, until `at_s`."""

    overdue: list[int] = []
    produced: int = 0
    at_s: float = 0.0


class Begun(msgspec.Struct, frozen=True, tag="begun"):
    """Child → supervisor: the first frame of this stream is about to go out; from now on it can only be ended."""

    number: int


class Computed(msgspec.Struct, frozen=True, tag="computed"):
    """Child → supervisor: the model's work is done, only the delivery is not: the slot is free."""

    number: int


class Level(msgspec.Struct, frozen=True):
    """One bucket of the upstream's rate limit, as its headers tell it. `reset_s`: until it is full again."""

    remaining: float
    limit: float | None = None
    reset_s: float | None = None


class Rates(msgspec.Struct, frozen=True, tag="rates"):
    """Child → supervisor, when the head of the upstream's answer came with any: an answer may take minutes to its end."""

    number: int
    requests: Level | None
    tokens: Level | None


End = Literal[
    "answered",  # the requester has its result
    "failed",  # the requester has an error object
    "retry",  # nothing was delivered: try again, counting an attempt
    "throttle",  # nothing was delivered: later, not counted; the upstream wants less
    "trouble",  # nothing was delivered: this node can serve nobody
    "busy",  # nothing was delivered: another attempt is answering the requester; later, not counted
    "gone",  # the requester left
    "unknown",  # the requester's service does not know the request (any more)
    "undeliverable",  # the endpoint could not be reached within the request's time
]


class Outcome(msgspec.Struct, frozen=True, tag="outcome"):
    """Child → supervisor: how one Task or Refuse ended. Exactly one for each that was not lost with its child.

    confirm: the trouble may be of this request alone: to be believed once a probe has met it too."""

    number: int
    end: End
    error: dict[str, Any] | None = None
    reason: str | None = None
    wait_s: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tokens_source: Literal["reported", "estimated", "none"] = "none"
    upstream_model: str | None = None
    upstream_sent_ms: float | None = None
    first_token_ms: float | None = None
    last_token_ms: float | None = None
    answered_ms: float | None = None
    answer: bytes | None = None
    confirm: bool = False  # the trouble may be this request's alone: another should find it too before the node believes it


class Probed(msgspec.Struct, frozen=True, tag="probed"):
    """Child → supervisor: how the upstream took a Probe. `error` None: well; `reason`: it serves nobody of ours."""

    error: dict[str, Any] | None = None
    reason: str | None = None


ToChild = Task | Refuse | Lease | Probe | Stop
FromChild = Ready | Alive | Unusable | Begun | Computed | Probed | Rates | Outcome
