"""One request in a child's hands, as others than its own task see it: ended, begun, overdue."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

LOOK_EACH_S = 0.005
AWAY_FROM_S = 0.1  # without a look: nothing was to be sent, or the process was stopped

Found = TypeVar("Found")


async def _say_nothing() -> None:
    return


def _never() -> bool:
    return False


class Lease:
    """Until when (monotonic) the supervisor's word holds that this process's requests are its own, and whether the
    supervisor is gone already. A process that was stopped may find that others answer them."""

    def __init__(self) -> None:
        self.until_s = math.inf
        self.is_cut: Callable[[], bool] = _never
        self._looked_s = 0.0
        self._was_cut = False

    def is_in_doubt(self) -> bool:
        """Whether whoever listens to the supervisor is about to renew it, or to end all runs: nothing may go out before
        that is known."""
        now_s = time.monotonic()
        if now_s - self._looked_s > AWAY_FROM_S:
            self._was_cut = self._was_cut or self.is_cut()
        self._looked_s = now_s
        return self._was_cut or now_s > self.until_s


class Run:
    """number: names it towards the supervisor; announce: says there that a stream's first frame is about to go out.

    by_s: monotonic; one that is not over by then hangs. ended: why its work is to end, once it is. produced: pieces of
    output so far.
    """

    def __init__(
        self, number: int, request_id: str, announce: Callable[[], Awaitable[None]] = _say_nothing, *, by_s: float = math.inf
    ) -> None:
        self.number, self.request_id, self.by_s = number, request_id, by_s
        self.begun = False
        self.produced = 0
        self.ended: Exception | None = None
        self.lease = Lease()
        self._announce = announce
        self._task: asyncio.Task[Any] | None = None

    # by others

    def end(self, why: Exception) -> None:
        """Its work gets `why` raised, wherever it waits. The first reason stands."""
        if self.ended is None:
            self.ended = why
            if self._task is not None:
                self._task.cancel()

    # by its own task

    async def endable(self, work: Coroutine[Any, Any, Found]) -> Found:
        """What `work` returns or raises; or what it was ended for."""
        if self.ended is not None:
            work.close()
            raise self.ended
        self._task = asyncio.current_task()
        try:
            return await work
        except asyncio.CancelledError:
            if self.ended is None:
                raise
            if self._task is not None:
                self._task.uncancel()
            raise self.ended from None
        finally:
            self._task = None

    async def check(self) -> None:
        """Before anything goes out. Raises what it was ended for."""
        while self.ended is None and self.lease.is_in_doubt():
            await asyncio.sleep(LOOK_EACH_S)
        if self.ended is not None:
            raise self.ended

    async def begin(self) -> None:
        """Before a stream's first frame. Raises what it was ended for: then nothing may go out."""
        await self.check()
        first, self.begun = not self.begun, True
        if first:
            try:
                await self._announce()
            except BaseException:
                self.begun = False  # nobody knows of it, and nothing is out
                raise

    def note_output(self) -> None:
        self.produced += 1
