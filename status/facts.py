"""What the node says of itself: plain data, made by the loop, read by the page, the metrics and `where`."""

from __future__ import annotations

from typing import Protocol

import msgspec


class ChildFacts(msgspec.Struct, frozen=True):
    """`number` is never used again; `name` is: by what follows it. `capacity`: requests it may hold, 0 for a gateway or a
    broker. `pids`: its own first, then its model server's."""

    number: int
    name: str
    pids: list[int]
    state: str
    age_s: float
    aboard: int
    capacity: int


class BucketFacts(msgspec.Struct, frozen=True):
    """One limit of the upstream's: what is left of how much, and what this node allows itself a second."""

    what: str
    level: float
    holds: float
    pace: float


class UpstreamFacts(msgspec.Struct, frozen=True):
    """`room`: requests that may be sent now, None where nothing is known of a limit. `guessed_pace`: requests a second,
    where refusals alone tell of one."""

    paused_s: float
    room: int | None
    refusals: int
    guessed_pace: float | None
    buckets: list[BucketFacts]


class LimitChange(msgspec.Struct, frozen=True):
    """`at_s`: since the epoch."""

    at_s: float
    limit: int
    why: str


class Snapshot(msgspec.Struct, frozen=True):
    """The node at one moment. `taken` = `ended` + `given_back` + `open`, always: each request is in one of the three.
    `states`: of those that are open. `unconfirmed`: publishes that the queue has not confirmed."""

    at_s: float
    why_not_ready: str
    taken: int
    ended: int
    given_back: int
    open: int
    states: dict[str, int]
    in_hand: int
    unconfirmed: int
    limit: int
    capacity: int
    children: list[ChildFacts]
    upstream: UpstreamFacts
    limit_changes: list[LimitChange]


class InHand(msgspec.Struct, frozen=True):
    """A request that the node holds. Times are UTC milliseconds."""

    request_id: str
    state: str
    waits_for: str
    stream: bool
    attempt: int
    child: str
    published_ms: float
    received_ms: float
    dispatched_ms: float | None
    trail: tuple[str, ...]


class NodeView(Protocol):
    """The node, as far as it may be looked at and touched from here; on the loop's thread alone."""

    def snapshot(self, why_not_ready: str) -> Snapshot:
        """As it is now."""

    def find(self, request_id: str) -> InHand | None:
        """A request in its hands."""

    def kill(self, child: int) -> bool:
        """SIGKILL; False where there is no such child."""
