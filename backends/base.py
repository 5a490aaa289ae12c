"""What every backend is to its child, and what it gives its answers to."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import msgspec


class BackendUnusable(Exception):
    """The backend cannot serve. `permanent`: another start would end the same; someone has to change something."""

    def __init__(self, message: str, *, permanent: bool) -> None:
        super().__init__(message)
        self.message, self.permanent = message, permanent


class Call(msgspec.Struct, frozen=True):
    """One request: `data` is the OpenAI body, `stream` whether the requester wants chunks, `deadline_at_s` monotonic.

    traceparent: W3C trace context, to be passed on; "" where there is none."""

    data: bytes
    stream: bool
    deadline_at_s: float
    traceparent: str = ""


class Account(msgspec.Struct, eq=False):
    """What one call cost, for the usage record, and whom to tell how it goes. Times are UTC milliseconds.

    on_asked: with the descriptor by which the answer will come, where it is to be passed on as it comes."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    tokens_source: Literal["reported", "estimated", "none"] = "none"
    upstream_model: str | None = None
    upstream_sent_ms: float | None = None
    first_token_ms: float | None = None
    on_asked: Callable[[int], None] | None = None
    on_first: Callable[[], None] | None = None
    on_head: Callable[[Mapping[str, str]], None] | None = None
    on_output: Callable[[], None] | None = None
    _prompt_characters: int = 0
    _output_characters: int = 0
    _last_output_s: float = 0.0

    @property
    def last_token_ms(self) -> float | None:
        return _ms(self._last_output_s) if self._last_output_s else None

    def sent(self, prompt_characters: int) -> None:
        self.upstream_sent_ms = now_ms()
        self._prompt_characters = prompt_characters

    def head(self, headers: Mapping[str, str]) -> None:
        """Of an answer of the upstream's, good or not; names in lower case."""
        if self.on_head is not None:
            self.on_head(headers)

    def output(self, characters: int) -> None:
        """0 for a chunk that says nothing, as the first, which only names the role."""
        if characters:
            self._last_output_s = time.time()
            if self.first_token_ms is None:
                self.first_token_ms = self.last_token_ms
                if self.on_first is not None:
                    self.on_first()
            self._output_characters += characters
            if self.on_output is not None:
                self.on_output()

    def reported(self, usage: tuple[int, int]) -> None:
        self.prompt_tokens, self.completion_tokens = usage
        self.tokens_source = "reported"

    def close(self) -> None:
        """Where nothing was reported but something was computed: four characters a token, marked as an estimate."""
        if self.tokens_source == "none" and self._output_characters:
            self.prompt_tokens = -(-self._prompt_characters // 4)
            self.completion_tokens = -(-self._output_characters // 4)
            self.tokens_source = "estimated"


def now_ms() -> float:
    return _ms(time.time())


def _ms(at_s: float) -> float:
    return round(at_s * 1000, 3)


class Sink(Protocol):
    """Where an answer goes: chunks for a stream, one whole completion otherwise."""

    def put(self, data: bytes) -> bool:
        """As `chunk`, where nothing has to be waited for: that is nearly always, and costs a token much less. False: it has to."""

    async def chunk(self, data: bytes) -> None:
        """One chunk, compact JSON; on its way when this returns. Raises RequesterGone, and what else ends the call."""

    def whole(self, data: bytes) -> None:
        """The completion."""


class Backend(Protocol):
    async def start(self) -> int:
        """Get ready; return how many requests may run at once (0: no limit of its own). Raises BackendUnusable."""

    async def answer(self, call: Call, sink: Sink, account: Account) -> None:
        """Compute and hand to the sink as it comes. Raises UpstreamFailed, and what the sink raises. May be cancelled, which
        ends what it has the upstream compute."""

    async def reach(self) -> None:
        """Connect to what it asks, without a request. Raises UpstreamFailed."""

    async def watch(self) -> None:
        """Raises BackendUnusable once what it wraps has died. It may also return, where nothing has to be watched."""

    def pids(self) -> list[int]:
        """Processes that belong to it."""

    def stop(self) -> None:
        """End what it started. May block for some seconds: nothing else runs any more."""
