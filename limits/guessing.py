"""A pace found by refusals alone, where the upstream tells nothing of its limit. Pure: the time is passed in."""

from __future__ import annotations

import math

from limits.pacer import Pacer

LEAST_PER_S = 0.05
BURST = 2.0
CUT, SMALL_CUT = 0.7, 0.85
SETTLED_S = 8.0  # a pace that was good for so long was nearly right
BACK_S = 15.0  # e-folding time of the way back to the pace that was refused
CREEP_PER_S = 0.0004
FASTER_EACH_S = 5.0
LONGEST_STEP_S = 1.0
METER_S = 4.0


class Meter:
    """How many a second, over the last few seconds."""

    def __init__(self) -> None:
        self._count, self._since_s, self._at_s = 0.0, math.nan, 0.0

    def add(self, now_s: float) -> None:
        if math.isnan(self._since_s):
            self._since_s = now_s
        self._count = self._count * math.exp(-(now_s - self._at_s) / METER_S) + 1
        self._at_s = now_s

    def rate(self, now_s: float) -> float:
        if math.isnan(self._since_s):
            return 0.0
        seen = 1 - math.exp(-max(now_s - self._since_s, 0.5) / METER_S)
        return self._count * math.exp(-(now_s - self._at_s) / METER_S) / (METER_S * seen)


class Guessed:
    """Unlimited until the first refusal. Then back to just below the pace that was refused, and slowly past it: ever faster
    the longer nothing is refused, as the limit may have grown."""

    def __init__(self) -> None:
        self._pacer: Pacer | None = None
        self._refused_pace = 0.0
        self._refused_at_s = self._stepped_at_s = self._hungry_at_s = -math.inf

    @property
    def is_active(self) -> bool:
        return self._pacer is not None

    @property
    def pace(self) -> float | None:
        """Requests a second; None: unlimited."""
        return self._pacer.rate if self._pacer is not None else None

    def refused(self, served_per_s: float, now_s: float, known: float | None = None) -> None:
        """`served_per_s`: how much was granted to us lately; `known`: to all nodes, where the upstream says that."""
        settled = now_s - self._refused_at_s > SETTLED_S
        self._refused_at_s = self._stepped_at_s = now_s
        if self._pacer is None:
            self._refused_pace = max(known or served_per_s, LEAST_PER_S)
            self._pacer = Pacer(CUT * self._refused_pace, BURST, now_s, 0.0)
            return
        rate = self._pacer.rate
        # Long answers were granted long ago: what was served lately may be far too little.
        self._refused_pace = rate if settled else max(min(served_per_s, rate), CUT * rate)
        self._pacer.turn(max(LEAST_PER_S, (SMALL_CUT if settled else CUT) * self._refused_pace), BURST, now_s)
        self._pacer.empty(now_s)

    def served(self, now_s: float) -> None:
        if self._pacer is None:
            return
        step_s = min(now_s - self._stepped_at_s, LONGEST_STEP_S)
        self._stepped_at_s = now_s
        if now_s - self._hungry_at_s < 1.0:
            rate, quiet_s = self._pacer.rate, now_s - self._refused_at_s
            back = max(0.0, 0.98 * self._refused_pace - rate) / BACK_S
            creep = CREEP_PER_S * rate * (1 + quiet_s / FASTER_EACH_S)
            self._pacer.turn(rate + step_s * (back + creep), BURST, now_s)

    def wait_s(self, now_s: float) -> float:
        if self._pacer is None:
            return 0.0
        wait_s = self._pacer.wait_s(1.0, now_s)
        if wait_s > 0:
            self._hungry_at_s = now_s
        return wait_s

    def room(self, now_s: float) -> float:
        return math.inf if self._pacer is None else self._pacer.credit(now_s)

    def spend(self, now_s: float) -> None:
        if self._pacer is not None:
            self._pacer.spend(1.0, now_s)
