"""Answers whose endpoint could not be reached: tried again within the request's time, apart from the slots."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from loguru import logger

from answers.delivery import Delivery
from answers.endpoint import AnotherAnswers, NodeStopped, NotDelivered, Refused, RequesterGone, RequesterUnknown
from errors import error_object
from ipc.messages import End, Outcome

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 15.0
MAX_KEPT_BYTES = 64 << 20
THREADS = 4


@dataclass(order=True)
class _Late:
    due_at_s: float
    order: int
    way: Delivery = field(compare=False)
    deadline_at_s: float = field(compare=False)
    size_bytes: int = field(compare=False)
    pause_s: float = field(compare=False)
    why: str = field(compare=False)
    number: int = field(compare=False)
    end: End = field(compare=False)
    error: dict[str, Any] | None = field(compare=False)
    report: Callable[[Outcome], None] = field(compare=False)


class LateDeliveries:
    """A heap of answers and a few threads, started with the first. Over MAX_KEPT_BYTES the newest is given up at once."""

    def __init__(self) -> None:
        self._heap: list[_Late] = []
        self._bytes = 0
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._threads = 0

    def add(
        self, way: Delivery, deadline_at_s: float, why: str, number: int, end: End, error: dict[str, Any] | None,
        report: Callable[[Outcome], None],
    ) -> None:
        """`report` is called once, with the outcome `end` or, in the end, `undeliverable`."""
        late = _Late(0.0, next(self._order), way, deadline_at_s, len(way.answer), FIRST_PAUSE_S, why, number, end, error, report)
        with self._changed:
            crowded = self._bytes + late.size_bytes > MAX_KEPT_BYTES
            self._bytes += 0 if crowded else late.size_bytes
        if crowded:
            report(undeliverable(number, why, way.answer))
            return
        self._put_back(late)
        self._start_thread()

    def _start_thread(self) -> None:
        with self._changed:
            if self._threads == THREADS:
                return
            self._threads += 1
        threading.Thread(target=self._run, name="late", daemon=True).start()

    def _put_back(self, late: _Late) -> None:
        """The last try is at the deadline."""
        late.due_at_s = min(time.monotonic() + late.pause_s, late.deadline_at_s)
        late.pause_s = min(2 * late.pause_s, LONGEST_PAUSE_S)
        with self._changed:
            heapq.heappush(self._heap, late)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            late = self._next_due()
            outcome = self._try(late)
            if outcome is None:
                self._put_back(late)
                continue
            with self._changed:
                self._bytes -= late.size_bytes
            late.report(outcome)

    def _next_due(self) -> _Late:
        with self._changed:
            while not self._heap or self._heap[0].due_at_s > time.monotonic():
                self._changed.wait(self._heap[0].due_at_s - time.monotonic() if self._heap else None)
            return heapq.heappop(self._heap)

    @staticmethod
    def _try(late: _Late) -> Outcome | None:
        """None: not yet."""
        try:
            late.way.finish()
        except NotDelivered as error:
            late.why = str(error)
            final = isinstance(error, Refused) or time.monotonic() >= late.deadline_at_s
            return undeliverable(late.number, late.why, late.way.answer) if final else None
        except (RequesterGone, RequesterUnknown, AnotherAnswers) as error:
            return unwanted(late.number, error)
        except NodeStopped as error:
            late.why = str(error)
            return None
        except Exception as bug:  # a bug of ours must cost one delivery, not the thread that all others wait for
            logger.exception("a late delivery hit a bug of the node")
            late.why = f"{type(bug).__name__}: {bug}"
            return undeliverable(late.number, late.why, late.way.answer)
        return Outcome(late.number, late.end, late.error)


_ENDS_UNWANTED: dict[type[Exception], tuple[End, str, str]] = {
    RequesterGone: ("gone", "requester_gone", "The requester left"),
    AnotherAnswers: ("busy", "requester_busy", "Another attempt is answering"),
    RequesterUnknown: ("unknown", "requester_unknown", "Nobody knows the request"),
}


def unwanted(number: int, why: RequesterGone | AnotherAnswers | RequesterUnknown) -> Outcome:
    """The end of a request whose answer nobody waits for, at least not from here."""
    end, code, words = _ENDS_UNWANTED[type(why)]
    return Outcome(number, end, error_object(f"{words}: {why}", "server_error", code))


def undeliverable(number: int, why: str, answer: bytes = b"") -> Outcome:
    """The end of a request whose answer nobody takes; the answer, where it was computed, is kept with it."""
    error = error_object(f"The answer could not be delivered: {why}", "server_error", "undeliverable")
    return Outcome(number, "undeliverable", error, answer=answer)
