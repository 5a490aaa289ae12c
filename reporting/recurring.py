"""Trouble that many requests share: said when it begins, and when it is over with how many it was."""

from __future__ import annotations

QUIET_S = 10.0  # without another of its kind it is over


class Recurring:
    """Pure: the caller has the clock, and says it."""

    def __init__(self) -> None:
        self._count, self._first_s, self._last_s = 0, 0.0, 0.0

    def happened(self, now_s: float) -> bool:
        """Whether it begins with this one. After `over`, which ends what is over."""
        self._first_s = self._first_s if self._count else now_s
        self._count, self._last_s = self._count + 1, now_s
        return self._count == 1

    def over(self, now_s: float) -> tuple[int, float] | None:
        """Once, when it is over: how many it was, in how many seconds."""
        if not self._count or now_s - self._last_s < QUIET_S:
            return None
        found = self._count, self._last_s - self._first_s
        self._count = 0
        return found
