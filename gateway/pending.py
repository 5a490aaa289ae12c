"""Who waits for an answer, and which link may give it. Used on the event loop's thread only, so it needs no locks."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

from gateway.patience import Line

DEFAULT_BUFFER_BYTES = 4 * 1024 * 1024


class RequesterGone(Exception):
    """The requester has hung up, or was dropped as it read too slowly."""


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """A piece of an answer. data: JSON as it came, or None; end: nothing follows; error: the error object, where data is one."""

    data: bytes | None
    end: bool
    error: dict[str, Any] | None = None

    @property
    def size_bytes(self) -> int:
        return len(self.data or b"")


class Link(Protocol):
    """A node's link (links.py), as far as those who wait need one."""

    def cancel(self, request_id: str) -> None:
        """Nobody waits for this request any more. Returns at once, and never fails."""

    def lose(self, request_id: str, attempt: int) -> None:
        """Another attempt answers this request from now on. As above."""


class Waiter:
    """One requester's mailbox, bounded in bytes: who puts never waits, and who takes has a deadline.

    link, attempt: whose the request is, where a link has begun it; has_output: something of an answer has come.
    drop: closes the requester's connection; called once, where it reads too slowly.
    relay: where one is set, it passes a frame on at once while `take` waits: to wake who takes for each token costs more than
    the token. It says whether it could; relayed_at_s: when it last did (the loop's time).
    """

    def __init__(
        self, request_id: str, stream: bool, drop: Callable[[], None], limit_bytes: int = DEFAULT_BUFFER_BYTES, model: str = ""
    ) -> None:
        self.request_id, self.stream, self.model = request_id, stream, model
        self.link: Link | None = None
        self.attempt = 0
        self.has_output = self.gone = False
        self.buffered_bytes = 0
        self.relay: Callable[[Frame], bool] | None = None
        self.relayed_at_s = -math.inf
        self._drop = drop
        self._limit_bytes = limit_bytes
        self._frames: list[Frame] = []
        self._awaited: asyncio.Future[None] | None = None

    def put(self, frame: Frame) -> bool:
        """False, and the requester is dropped, where its buffer is full. One frame alone may be of any size."""
        if self.relay is not None and self._is_awaited and not frame.end and self.relay(frame):
            self.relayed_at_s = asyncio.get_running_loop().time()
            return True
        if self._frames and self.buffered_bytes + frame.size_bytes > self._limit_bytes:
            self._drop()  # first, so that the connection is known to be lost when who takes wakes up
            self.leave()
            return False
        self.has_output = True
        self._frames.append(frame)
        self.buffered_bytes += frame.size_bytes
        self._wake()
        return True

    def leave(self) -> None:
        """The requester has gone: free what is buffered, and wake who takes."""
        self.gone = True
        self._frames, self.buffered_bytes = [], 0
        self._wake()

    async def take(self, timeout_s: float) -> list[Frame]:
        """All that has come, at least one frame. Raises TimeoutError, RequesterGone."""
        if not self._frames and not self.gone:
            await self._wait(timeout_s)
        if self.gone:
            raise RequesterGone
        frames, self._frames = self._frames, []
        self.buffered_bytes = 0
        return frames

    async def _wait(self, timeout_s: float) -> None:
        """As asyncio.timeout around an Event, at a third of the cost: this is done for each token."""
        loop = asyncio.get_running_loop()
        awaited = self._awaited = loop.create_future()
        timer = loop.call_later(timeout_s, self._wake)
        try:
            await awaited
        finally:
            timer.cancel()
            self._awaited = None
        if not self._frames and not self.gone:
            raise TimeoutError

    @property
    def _is_awaited(self) -> bool:
        """Who takes has nothing in hand, and nothing to come to."""
        return self._awaited is not None and not self._awaited.done()

    def _wake(self) -> None:
        if self._awaited is not None and self._is_awaited:
            self._awaited.set_result(None)


class Pending:
    """Waiters by request id. An id leaves with its end frame: what comes after it is for nobody."""

    def __init__(self) -> None:
        self.links: set[Link] = set()
        self._waiters: dict[str, Waiter] = {}
        self._lines: dict[str, Line] = {}  # by model

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(list(self._waiters.values()))

    def add(self, waiter: Waiter) -> None:
        """`remove` has to follow, whatever becomes of it."""
        self._waiters[waiter.request_id] = waiter
        self._lines.setdefault(waiter.model, Line()).enter(waiter.request_id, time.monotonic())

    def wait_s(self, model: str) -> float | None:
        """How long a request for this model would wait for a node; None where it cannot be told."""
        line = self._lines.get(model)
        return line.wait_s(time.monotonic()) if line else None

    def get(self, request_id: str) -> Waiter | None:
        return self._waiters.get(request_id)

    def begin(self, request_id: str, attempt: int, link: Link) -> Literal["go", "gone", "busy"]:
        """May this link answer? While there is no output the last to ask may: its node knows that the one before is lost."""
        waiter = self._waiters.get(request_id)
        if waiter is None:
            return "gone"
        if waiter.has_output and (waiter.link is not link or waiter.attempt != attempt):
            return "busy"
        if waiter.link is not link:
            self._take_from_link(waiter)
        if (line := self._lines.get(waiter.model)) is not None:
            line.begin(request_id)
        waiter.link, waiter.attempt = link, attempt
        return "go"

    def deliver(self, waiter: Waiter, frame: Frame, link: Link | None = None) -> bool:
        """False where nobody waits any more, or not for this sender. link: None for what came to the endpoint."""
        if self._waiters.get(waiter.request_id) is not waiter or not self._may_answer(waiter, link):
            return False
        taken = waiter.put(frame)
        if frame.end or not taken:
            del self._waiters[waiter.request_id]
        if not (frame.end or taken):
            self._cancel(waiter)
        return taken

    def _may_answer(self, waiter: Waiter, link: Link | None) -> bool:
        """What comes to the endpoint takes the request from its link, as another `begin` does: while there is no output."""
        if waiter.link is link:
            return True
        if link is not None or waiter.has_output:
            return False
        self._take_from_link(waiter)
        return True

    def _take_from_link(self, waiter: Waiter) -> None:
        if waiter.link is not None:
            waiter.link.lose(waiter.request_id, waiter.attempt)
            waiter.link = None

    def remove(self, waiter: Waiter) -> None:
        """The requester is served, or has gone, which the nodes are told."""
        if self._waiters.pop(waiter.request_id, None) is not None:
            self._cancel(waiter)
        waiter.leave()
        self._leave_line(waiter)

    def _leave_line(self, waiter: Waiter) -> None:
        line = self._lines.get(waiter.model)
        if line is not None and line.leave(waiter.request_id, waiter.has_output) == 0:
            del self._lines[waiter.model]

    def end(self, waiter: Waiter, last: Frame) -> None:
        """The gateway's own last word, whoever was answering."""
        if self._waiters.pop(waiter.request_id, None) is not None:
            self._cancel(waiter)
            waiter.put(last)

    def _cancel(self, waiter: Waiter) -> None:
        """To the link that has begun it; to all where none has, as one may be about to. Not for output from elsewhere."""
        if waiter.link is not None:
            waiter.link.cancel(waiter.request_id)
        elif not waiter.has_output:
            for link in self.links:
                link.cancel(waiter.request_id)

    def release(self, link: Link, last: Frame) -> None:
        """The link has ended: `last` ends what has output, the rest is free for the attempt that follows."""
        self.links.discard(link)
        for waiter in self:
            if waiter.link is link:
                waiter.link = None
                if waiter.has_output:
                    self.end(waiter, last)
