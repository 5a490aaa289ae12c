"""What the node remembers of what happened, with a STATUS_PORT: written by the loop, read by the threads that serve it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redaction import redact
from reporting.usage import Ended, node_id
from status.backlog import Backlog
from status.facts import Snapshot
from status.series import POINT_EACH_S, Point, Second, new_series
from status.stories import Note, Stories
from status.tally import Tally
from status.troubles import Troubles

if TYPE_CHECKING:
    from config import Settings
    from messaging.redelivery import History

MOST_NEW = 100
LONGEST = 500  # of what others have said


@dataclass(frozen=True)
class Death:
    """Of the child that stood at this place. `at_s`: since the epoch; `aboard`: requests that it had."""

    at_s: float
    pid: int
    cause: str
    expected: bool
    aboard: int


class Book:
    """`latest`: the newest snapshot, and how requests had ended by then; None before the loop's first turn."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.node, self.started_s = settings, node_id(), time.time()
        self.tally, self.stories = Tally(), Stories()
        self.series: deque[Point] = new_series()
        self.deaths: dict[str, list[Death]] = {}  # by the child's name: there are few
        self.troubles = Troubles(settings.secrets)
        self.backlog = Backlog(settings)
        self.latest: tuple[Snapshot, dict[tuple[str, str], int]] | None = None
        self._new: list[tuple[Ended, bytes]] = []
        self._second, self._next_point_s = Second(), 0.0

    # by the loop

    def ended(self, ended: Ended, record: bytes) -> None:
        """Once for each request that has an id: only noted, and entered together with others."""
        self._new.append((ended, record))
        if len(self._new) >= MOST_NEW:
            self.enter()

    def enter(self) -> None:
        """What is new."""
        if not self._new:
            return
        new, self._new = self._new, []
        batch = [ended for ended, _ in new]
        self.tally.add(batch)
        self._second.add(batch)
        for ended, record in new:
            why = redact(str(ended.error.get("message")), self.settings.secrets)[:LONGEST] if ended.error else ""
            self.stories.ended(ended.request_id, record, why, ended.trail)

    def given_back(self, request_id: str, received_ms: float, attempt: int, history: History, delay_s: float, here: bool = False) -> None:
        is_tried = history.attempt > attempt
        why = f" after attempt {attempt}: {history.last_error}" if is_tried else ", no attempt counted"
        words = f"{'tried again here' if here else 'put back into the queue'}{why}" + (f"; due again in {delay_s:.1f} s" if delay_s else "")
        self.stories.note(request_id, Note(received_ms, f"received for attempt {attempt}"))
        self.stories.note(request_id, Note(time.time() * 1000, redact(words, self.settings.secrets)[:LONGEST]))

    def died(self, name: str, kind: str, death: Death) -> None:
        """`kind`: of a few, for the metrics."""
        self.tally.deaths[name, kind] += 1
        self.deaths.setdefault(name, []).append(death)
        del self.deaths[name][:-10]

    @property
    def is_point_due(self) -> bool:
        return time.monotonic() >= self._next_point_s

    def add_point(self, snapshot: Snapshot) -> None:
        self._next_point_s = time.monotonic() + POINT_EACH_S
        self.enter()
        self.latest = snapshot, dict(self.tally.ends)  # of one moment, so that they add up
        self.series.append(self._second.point(snapshot.at_s, snapshot.in_hand, snapshot.limit, self.backlog.count))
        self._second = Second()
