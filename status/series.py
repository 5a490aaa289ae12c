"""The last minutes, a point each second, for the page's plots."""

from __future__ import annotations

from collections import deque

import msgspec

from reporting.usage import Ended

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
        self._totals_ms: list[float] = []
        self._firsts_ms: list[float] = []

    def add(self, batch: list[Ended]) -> None:
        answered = [e for e in batch if e.outcome.end == "answered"]
        self.answered += len(answered)
        self.failed += len(batch) - len(answered)
        self.tokens += sum(e.outcome.prompt_tokens + e.outcome.completion_tokens for e in batch)
        if len(self._totals_ms) < MOST_TIMES:
            self._totals_ms += [e.outcome.answered_ms - e.received_ms for e in answered if e.outcome.answered_ms is not None]
            self._firsts_ms += [e.outcome.first_token_ms - e.received_ms for e in answered if e.outcome.first_token_ms is not None]

    def point(self, at_s: float, in_hand: int, limit: int, backlog: int | None) -> Point:
        totals, firsts = sorted(self._totals_ms), sorted(self._firsts_ms)
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
