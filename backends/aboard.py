"""The requests that a child has in hand, by their ids: whom a cancel is for, who hangs, who has begun to stream."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict

from answers.endpoint import RequesterGone
from answers.run import Lease, Run

MAX_EARLY = 10_000
LOOK_EACH_S = 0.01


class Aboard:
    """A request id may be aboard more than once: its refusal may come while an older delivery is tried."""

    def __init__(self) -> None:
        self._runs: dict[int, Run] = {}
        self._by_id: dict[str, list[Run]] = {}
        self._early: OrderedDict[str, None] = OrderedDict()
        self._over: Exception | None = None
        self._produced = 0  # by those that were removed
        self.lease = Lease()

    def add(self, run: Run) -> Run:
        run.lease = self.lease
        self._runs[run.number] = run
        self._by_id.setdefault(run.request_id, []).append(run)
        if self._over is not None:
            run.end(self._over)
        return run

    def remove(self, run: Run) -> None:
        if self._runs.get(run.number) is run:
            del self._runs[run.number]
            self._produced += run.produced
            of_id = self._by_id[run.request_id]
            of_id.remove(run)
            if not of_id:
                del self._by_id[run.request_id]

    def produced(self) -> int:
        """Pieces of output, of all that ever were aboard."""
        return self._produced + sum(run.produced for run in self._runs.values())

    def cancel(self, request_id: str) -> None:
        """End its work; what is not here yet is remembered."""
        found = self._by_id.get(request_id, [])
        if not found:
            self._early[request_id] = None
            if len(self._early) > MAX_EARLY:
                self._early.popitem(last=False)
        for run in found:
            run.end(RequesterGone("the gateway says that nobody waits for it any more"))

    def was_cancelled(self, request_id: str) -> bool:
        """Whether a cancel came before it; said once. Reason enough to wait for the gateway's reply, which knows."""
        found = request_id in self._early
        self._early.pop(request_id, None)
        return found

    def overdue(self) -> list[int]:
        """Numbers of those that should be over by now, whatever they had to wait for."""
        now_s = time.monotonic()
        return [run.number for run in self._runs.values() if run.by_s < now_s]

    async def end_all(self, why: Exception, within_s: float) -> None:
        """What comes later is ended too. Returns once the streams that have begun are over, or the time is."""
        self._over = why
        for run in list(self._runs.values()):
            run.end(why)
        give_up_at_s = time.monotonic() + within_s
        while any(run.begun for run in self._runs.values()) and time.monotonic() < give_up_at_s:
            await asyncio.sleep(LOOK_EACH_S)
