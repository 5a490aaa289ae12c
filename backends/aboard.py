"""The requests that a child has in hand, by their ids: whom a cancel is for, who hangs, who has begun to stream."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

from answers.endpoint import RequesterGone
from answers.run import Lease, Run

MAX_EARLY = 10_000
LOOK_EACH_S = 0.01
CONFIRMED_AFTER_S = 1.0


class Aboard:
    """Thread-safe. A request id may be aboard more than once: its refusal may come while an older delivery is tried."""

    def __init__(self) -> None:
        self._runs: dict[int, Run] = {}
        self._early: OrderedDict[str, None] = OrderedDict()
        self._late_since_s: dict[int, float] = {}
        self._over: Exception | None = None
        self._produced = 0  # by those that were removed
        self.lease = Lease()
        self._lock = threading.Lock()

    def add(self, run: Run) -> Run:
        run.lease = self.lease
        with self._lock:
            self._runs[run.number] = run
            over = self._over
        if over is not None:
            run.end(over)
        return run

    def remove(self, run: Run) -> None:
        with self._lock:
            if self._runs.get(run.number) is run:
                del self._runs[run.number]
                self._produced += run.produced

    def produced(self) -> int:
        """Pieces of output, of all that ever were aboard."""
        with self._lock:
            return self._produced + sum(run.produced for run in self._runs.values())

    def cancel(self, request_id: str) -> None:
        """End its work; what is not here yet is remembered."""
        with self._lock:
            found = [run for run in self._runs.values() if run.request_id == request_id]
            if not found:
                self._early[request_id] = None
                if len(self._early) > MAX_EARLY:
                    self._early.popitem(last=False)
        for run in found:
            run.end(RequesterGone("the gateway says that nobody waits for it any more"))

    def was_cancelled(self, request_id: str) -> bool:
        """Whether a cancel came before it; said once. Reason enough to wait for the gateway's reply, which knows."""
        with self._lock:
            found = request_id in self._early
            self._early.pop(request_id, None)
        return found

    def overdue(self) -> list[int]:
        """Numbers of those whose worker should have shown something by now. For one thread.

        Named only when they still are some time after they were first seen: a process that was stopped for a while finds
        everything overdue. At first sight what the worker waits on is shut: an upstream that drips one byte after the
        other passes every time-out of a socket."""
        now_s = time.monotonic()
        late = [run for run in self._all() if run.by_s < now_s]
        for run in late:
            if run.number not in self._late_since_s:
                run.shake()
        self._late_since_s = {run.number: self._late_since_s.get(run.number, now_s) for run in late}
        return [number for number, since_s in self._late_since_s.items() if now_s - since_s >= CONFIRMED_AFTER_S]

    def end_all(self, why: Exception, within_s: float) -> None:
        """What comes later is ended too. Returns once the streams that have begun are over, or the time is."""
        with self._lock:
            self._over = why
        for run in self._all():
            run.end(why)
        give_up_at_s = time.monotonic() + within_s
        while any(run.begun for run in self._all()) and time.monotonic() < give_up_at_s:
            time.sleep(LOOK_EACH_S)

    def _all(self) -> list[Run]:
        with self._lock:
            return list(self._runs.values())
