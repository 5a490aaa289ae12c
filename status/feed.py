"""What the page shows, each second: as server-sent events, for a bounded number of watchers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import psutil

from reporting.usage import NODE_VERSION
from status.book import Book, Death
from status.facts import ChildFacts
from status.guard import may_kill
from status.health import Health

EACH_S = 1.0
MOST_WATCHERS = 16
DEATHS_SHOWN = 30


class Feed:
    def __init__(self, book: Book, health: Health) -> None:
        self._book, self._health = book, health
        self._seats = threading.BoundedSemaphore(MOST_WATCHERS)

    def take_seat(self) -> bool:
        return self._seats.acquire(blocking=False)

    def leave_seat(self) -> None:
        self._seats.release()

    def send(self, write: Callable[[bytes], object], has_left: Callable[[float], bool]) -> None:
        """Until the watcher has left; `has_left` waits for that, so many seconds at most. First all points of the plots,
        then the newest. Raises OSError."""
        write(_event(self.whole()))
        while not has_left(EACH_S):
            write(_event(self.state()))

    def whole(self) -> dict[str, Any]:
        return {**self.state(), "series": list(self._book.series)}

    def state(self) -> dict[str, Any]:
        book, settings = self._book, self._book.settings
        snapshot, ends = book.latest or (None, {})
        return {
            "at_s": time.time(),
            "started_s": book.started_s,
            "node": {
                "id": book.node, "type": settings.node_type, "model": settings.model_name, "version": NODE_VERSION,
                "gateway": settings.port, "most": settings.max_process_num, "may_kill": may_kill(settings),
            },
            "why_not_ready": self._health.why_not_ready,
            "snapshot": snapshot,
            "children": [self._child(child) for child in snapshot.children] if snapshot else [],
            "deaths": self._deaths(),
            "point": book.series[-1] if book.series else None,
            "backlog": book.backlog.count,
            "troubles": book.troubles.latest(),
            "totals": self._totals(ends),
        }  # fmt: skip

    def _child(self, child: ChildFacts) -> dict[str, Any]:
        deaths = self._book.deaths.get(child.name, [])
        count = sum(n for (name, _), n in self._book.tally.deaths.items() if name == child.name)
        return {
            "number": child.number, "name": child.name, "pid": child.pids[0], "state": child.state, "age_s": child.age_s,
            "aboard": child.aboard, "capacity": child.capacity, "memory_bytes": sum(map(resident_bytes, child.pids)),
            "restarts": count, "last_death": _death(deaths[-1]) if deaths else None,
        }  # fmt: skip

    def _deaths(self) -> list[dict[str, Any]]:
        """The latest of all children."""
        found = [{"name": name, **_death(death)} for name, deaths in list(self._book.deaths.items()) for death in list(deaths)]
        return sorted(found, key=lambda death: death["at_s"])[-DEATHS_SHOWN:]

    def _totals(self, ends: dict[tuple[str, str], int]) -> dict[str, Any]:
        tally = self._book.tally
        outcomes: dict[str, int] = {}
        for (outcome, _), count in ends.items():
            outcomes[outcome] = outcomes.get(outcome, 0) + count
        return {
            "outcomes": outcomes, "dead_letters": tally.dead_letters,
            "input_tokens": int(tally.input_tokens.sum), "output_tokens": int(tally.output_tokens.sum),
        }  # fmt: skip


def resident_bytes(pid: int) -> int:
    """0 where it has just ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _death(death: Death) -> dict[str, Any]:
    return {"at_s": death.at_s, "pid": death.pid, "cause": death.cause, "expected": death.expected, "aboard": death.aboard}


def _event(state: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(state) + b"\n\n"


