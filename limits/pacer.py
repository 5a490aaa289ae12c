"""A bucket of our own: what may be spent, and how fast it comes back. Pure: the time is passed in."""

from __future__ import annotations

import math


class Pacer:
    """`rate` a second, `burst` at most. A spending may leave a debt, so that what is bigger than the burst passes too."""

    def __init__(self, rate: float, burst: float, now_s: float, credit: float | None = None) -> None:
        self.rate, self.burst = rate, burst
        self._credit, self._at_s = burst if credit is None else credit, now_s

    def credit(self, now_s: float) -> float:
        return min(self.burst, self._credit + self.rate * max(0.0, now_s - self._at_s))

    def turn(self, rate: float, burst: float, now_s: float) -> None:
        """From now on at this rate."""
        self._credit, self._at_s = min(burst, self.credit(now_s)), now_s
        self.rate, self.burst = rate, burst

    def lift(self, least: float, now_s: float) -> None:
        self.burst = max(self.burst, least)
        self._credit, self._at_s = max(self.credit(now_s), least), now_s

    def spend(self, amount: float, now_s: float) -> None:
        self._credit, self._at_s = self.credit(now_s) - amount, now_s

    def empty(self, now_s: float) -> None:
        self._credit, self._at_s = min(0.0, self.credit(now_s)), now_s

    def give_back(self, amount: float) -> None:
        """Of a spending that was too high; a negative one was too low."""
        self._credit = min(self.burst, self._credit + amount)

    def wait_s(self, amount: float, now_s: float) -> float:
        """Until so much can be spent; 0 where it can be now."""
        missing = min(amount, self.burst) - self.credit(now_s)
        if missing <= 1e-9:
            return 0.0
        return missing / self.rate if self.rate > 0 else math.inf
