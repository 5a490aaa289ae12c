"""Who waits for an answer. Used on the event loop's thread only, so it needs no locks."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

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


class Waiter:
    """One requester's mailbox, bounded in bytes: who puts never waits, and who takes has a deadline.

    drop: closes the requester's connection; called once, where it reads too slowly.
    """

    def __init__(self, request_id: str, stream: bool, drop: Callable[[], None], limit_bytes: int = DEFAULT_BUFFER_BYTES) -> None:
        self.request_id, self.stream = request_id, stream
        self.gone = False
        self.buffered_bytes = 0
        self._drop = drop
        self._limit_bytes = limit_bytes
        self._frames: list[Frame] = []
        self._arrived = asyncio.Event()

    def put(self, frame: Frame) -> bool:
        """False, and the requester is dropped, where its buffer is full. One frame alone may be of any size."""
        if self._frames and self.buffered_bytes + frame.size_bytes > self._limit_bytes:
            self._drop()  # first, so that the connection is known to be lost when who takes wakes up
            self.leave()
            return False
        self._frames.append(frame)
        self.buffered_bytes += frame.size_bytes
        self._arrived.set()
        return True

    def leave(self) -> None:
        """The requester has gone: free what is buffered, and wake who takes."""
        self.gone = True
        self._frames, self.buffered_bytes = [], 0
        self._arrived.set()

    async def take(self, timeout_s: float) -> list[Frame]:
        """All that has come, at least one frame. Raises TimeoutError, RequesterGone."""
        async with asyncio.timeout(timeout_s):
            await self._arrived.wait()
        if self.gone:
            raise RequesterGone
        frames, self._frames = self._frames, []
        self.buffered_bytes = 0
        self._arrived.clear()
        return frames


class Pending:
    """Waiters by request id. An id leaves with its end frame: what comes after it is for nobody."""

    def __init__(self) -> None:
        self._waiters: dict[str, Waiter] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(list(self._waiters.values()))

    def add(self, waiter: Waiter) -> None:
        self._waiters[waiter.request_id] = waiter

    def get(self, request_id: str) -> Waiter | None:
        return self._waiters.get(request_id)

    def deliver(self, waiter: Waiter, frame: Frame) -> bool:
        """False where nobody waits any more."""
        if self._waiters.get(waiter.request_id) is not waiter:
            return False
        taken = waiter.put(frame)
        if frame.end or not taken:
            del self._waiters[waiter.request_id]
        return taken

    def remove(self, waiter: Waiter) -> None:
        """The requester is served, or has gone."""
        self._waiters.pop(waiter.request_id, None)
        waiter.leave()
