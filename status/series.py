"""The last minutes, a point each second, for the page's plots."""

from __future__ import annotations

from collections import deque

import msgspec

POINT_EACH_S = 1.0
POINTS_KEPT = 600
MOST_TIMES = 5000  # of one second that are looked at for its quantiles


class Point(msgspec.Struct, frozen=True):
    """One second. Durations are in seconds, None where nothing ended in it; `backlog`: None where nobody can tell."""

    at_s: float
    in_hand: int
    limit: int
    backlog: int | None
    answered: int
    failed: int
    tokens: int
    total_p50: float | None
    total_p95: float | None
    first_p50: float | None
    first_p95: float | None


class Second:
    """What ended since the last point."""

    def __init__(self) -> None:
        self.answered = self.failed = self.tokens = 0
        self._totals: list[float] = []
        self._firsts: list[float] = []

    def add(self, *, answered: bool, tokens: int, total_ms: float | None, first_ms: float | None) -> None:
        self.answered += answered
        self.failed += not answered
        self.tokens += tokens
        if answered and len(self._totals) < MOST_TIMES:
            if total_ms is not None:
                self._totals.append(total_ms)
            if first_ms is not None:
                self._firsts.append(first_ms)

    def point(self, at_s: float, in_hand: int, limit: int, backlog: int | None) -> Point:
        totals, firsts = sorted(self._totals), sorted(self._firsts)
        return Point(
            round(at_s, 1), in_hand, limit, backlog, self.answered, self.failed, self.tokens,
            _quantile(totals, 0.5), _quantile(totals, 0.95), _quantile(firsts, 0.5), _quantile(firsts, 0.95),
        )  # fmt: skip


def new_series() -> deque[Point]:
    return deque(maxlen=POINTS_KEPT)


def _quantile(ordered_ms: list[float], share: float) -> float | None:
    """In seconds."""
    if not ordered_ms:
        return None
    return round(max(0.0, ordered_ms[min(len(ordered_ms) - 1, int(share * len(ordered_ms)))]) / 1000, 4)
