"""One bucket of the upstream's, as its headers tell it, and this node's pace, steered by it.

All nodes of one key see the same level, so nobody has to tell them of each other: each takes the share of what flows in
that the level stands for, more of it where the level is high. The more nodes there are, the lower the level settles, and
the share of each is the same: with one node it stays below full (what is full wastes), with ten above empty. Pure: the
time is passed in.
"""

from __future__ import annotations

import math

from ipc.messages import Level
from limits.pacer import Pacer

FIRST_SHARE, LEAST_SHARE, MOST_SHARE = 0.1, 0.02, 1.25
TARGET = 0.4  # of what the bucket holds
LEFT_OVER = 0.5  # requests that a dispatch leaves there, by our estimate
FOLLOW_S = 4.0  # for the share to come near to what the level stands for
OPENING_PER_S = 3.0  # while the bucket is nearly full, what flows in is lost: e-fold in a third of a second
NEARLY_FULL = 0.8
BAND = 0.5  # how much the level alone moves the pace
CUT, LATE_CUT = 0.7, 0.93  # after a refusal; where levels come late, the way back is long
LONGEST_STEP_S = 2.0
HUNGRY_FOR_S = 1.0
BURST = 0.25  # of our share of the bucket
FEWEST = 4  # requests that the bucket must hold for its level to say anything
MINUTE_S = 60.0


class Refill:
    """How fast the bucket fills, in units a second. Resets tell when it is FULL: how much a reset moves with the level is
    how long a unit takes, whatever the limit's period and the bucket's size are. Until that is clear, a minute is assumed
    (as nearly all vendors do) unless the reset speaks of a longer period, as of a day."""

    MEMORY = 0.97

    def __init__(self) -> None:
        self._weight = self._mean_level = self._mean_reset = 0.0
        self._levels = self._resets = self._both = 0.0  # their variances and covariance
        self._guess: float | None = None
        self._is_short = False
        self.measured: float | None = None

    @property
    def is_doubtful(self) -> bool:
        """The resets speak of less than a minute."""
        return self.measured is None and self._is_short

    @property
    def rate(self) -> float | None:
        return self.measured or self._guess

    def heard(self, level: Level) -> None:
        if self._guess is None and level.limit:
            period_s = _period_s(level)
            self._is_short = period_s is not None and period_s < MINUTE_S / 2
            self._guess = level.limit / (period_s if period_s and period_s > 10 * MINUTE_S else MINUTE_S)
        if level.reset_s is not None and not _is_coarse(level.reset_s):
            self._add(level.remaining, level.reset_s)

    def _add(self, remaining: float, reset_s: float) -> None:
        self._weight = self.MEMORY * self._weight + 1
        part = 1 / self._weight
        off_level, off_reset = remaining - self._mean_level, reset_s - self._mean_reset
        self._mean_level += part * off_level
        self._mean_reset += part * off_reset
        keep = 1 - part
        self._levels = keep * (self._levels + part * off_level * off_level)
        self._resets = keep * (self._resets + part * off_reset * off_reset)
        self._both = keep * (self._both + part * off_level * off_reset)
        if self._weight > 3 and self._levels >= 1 and self._both < -0.9 * math.sqrt(self._levels * self._resets):
            self.measured = math.sqrt(self._levels / self._resets)


def _period_s(level: Level) -> float | None:
    """In which the limit flows in, if a full bucket holds it."""
    if level.limit and level.reset_s and level.remaining < level.limit:
        return level.limit * level.reset_s / (level.limit - level.remaining)
    return None


def _is_coarse(reset_s: float) -> bool:
    """Azure tells whole seconds, rounded up."""
    return reset_s < 20 and reset_s == int(reset_s)


class Steered:
    """Amounts are requests, or tokens; `unit`: what one request takes of them."""

    def __init__(self, unit: float, now_s: float) -> None:
        self.unit = unit
        self.share = FIRST_SHARE
        self.refill = Refill()
        self.capacity = self._most_left = self._full = 0.0
        self.spent = 0.0  # by us, ever
        self._level, self._level_at_s = 0.0, now_s
        self._read_of_s = -math.inf  # when the request was sent that brought the last reading
        self._latency_s = 0.1
        self._steered_at_s, self._hungry_at_s = now_s, -math.inf
        self._pacer = Pacer(0.0, unit, now_s)

    @property
    def speaks(self) -> bool:
        """Whether the headers are enough to go by."""
        return self.refill.rate is not None and self.capacity >= FEWEST * self.unit

    @property
    def pace(self) -> float:
        return self._pacer.rate

    def heard(self, level: Level, sent_s: float, spent_then: float, now_s: float) -> None:
        """Of a request sent at `sent_s`, when we had spent `spent_then`, itself included. It speaks of that moment: where it
        speaks of a later one, what we spent meanwhile and our share of what flowed in cancel out."""
        self.refill.heard(level)
        self._size(level)
        if sent_s < self._read_of_s:
            return  # a longer answer than one sent after it
        self._read_of_s = sent_s
        read = level.remaining + 0.5 * min(1.0, self.unit)
        self._set_level(read + self._inflow() * (now_s - sent_s) - (self.spent - spent_then), now_s)
        self._latency_s += 0.1 * (now_s - sent_s - self._latency_s)
        if self.speaks:
            self._steer(now_s)
            if self.refill.is_doubtful and level.limit and level.remaining > level.limit / 2:
                self._pacer.lift(level.remaining / 2, now_s)  # the assumed pace may be far too low, but there is enough

    def _size(self, level: Level) -> None:
        """What the bucket holds: the most that was ever left, or what a reset means."""
        self._most_left = max(self._most_left, level.remaining + self.unit)
        if level.reset_s and self.refill.rate:
            rounded_s = 1.0 if _is_coarse(level.reset_s) else 0.0
            full = level.remaining + (level.reset_s - rounded_s) * self.refill.rate
            self._full += (full - self._full) * (0.1 if self._full else 1.0)
        holds = max(self._most_left, self._full)
        self.capacity = min(holds, level.limit or holds)

    def level(self, now_s: float) -> float:
        """By our estimate."""
        return min(self.capacity, self._level + self._inflow() * (now_s - self._level_at_s))

    def _set_level(self, level: float, now_s: float) -> None:
        self._level, self._level_at_s = min(self.capacity, level), now_s

    def _inflow(self) -> float:
        """What is ours of it, a second."""
        return min(1.0, self.share) * (self.refill.rate or 0.0)

    def wait_s(self, amount: float, now_s: float) -> float:
        """Until so much may be spent; 0: now. No amount waits for ever: at most for a full bucket."""
        if not self.speaks:
            return 0.0
        wait_s = max(self._pacer.wait_s(amount, now_s), self._level_wait_s(amount, now_s))
        if wait_s > 0:
            self._hungry_at_s = now_s
        return wait_s

    def _level_wait_s(self, amount: float, now_s: float) -> float:
        wanted = min(amount + LEFT_OVER * self.unit, 0.95 * self.capacity)
        missing = wanted - self.level(now_s)
        return max(0.0, missing / (self._inflow() or 1.0))

    def room(self, now_s: float) -> float:
        """How much may be spent now."""
        if not self.speaks:
            return math.inf
        return min(self._pacer.credit(now_s), self.level(now_s) - LEFT_OVER * self.unit)

    def spend(self, amount: float, now_s: float) -> float:
        """What we have spent with it."""
        self.spent += amount
        self._set_level(self.level(now_s) - amount, now_s)
        self._pacer.spend(amount, now_s)
        return self.spent

    @property
    def is_timely(self) -> bool:
        """Whether levels come before the bucket can have half emptied: with long answers that are not streamed they do not."""
        return self._latency_s * (self.refill.rate or 0.0) < self.capacity / 2

    def is_low(self, now_s: float) -> bool:
        """Whether a refusal now is what the level would have led to expect."""
        return self.level(now_s) < 0.75 * TARGET * self.capacity

    def cut(self, now_s: float) -> None:
        self.share = max(LEAST_SHARE, max(CUT, min(LATE_CUT, self._latency_s)) * self.share)
        self._pacer.empty(now_s)
        self._steered_at_s = now_s

    def correct(self, amount: float, now_s: float) -> None:
        """What was spent was so much more than was thought."""
        self.spent += amount
        self._set_level(self.level(now_s) - amount, now_s)

    def _steer(self, now_s: float) -> None:
        off = self._off_target(now_s)
        self._follow(off, min(now_s - self._steered_at_s, LONGEST_STEP_S), now_s)
        self._steered_at_s = now_s
        burst = max(2 * self.unit, BURST * self.share * self.capacity)
        self._pacer.turn(self.share * (self.refill.rate or 0.0) * (1 + off * BAND * min(1.0, 0.5 / self._latency_s)), burst, now_s)

    def _follow(self, off: float, step_s: float, now_s: float) -> None:
        """A share that is not used up does not grow."""
        missing = MOST_SHARE * ((1 + off) / 2) ** 2 - self.share
        if missing > 0 and now_s - self._hungry_at_s > HUNGRY_FOR_S:
            return
        if missing > 0 and self.level(now_s) > NEARLY_FULL * self.capacity:
            self.share += step_s * OPENING_PER_S * self.share
        self.share += missing * (1 - math.exp(-step_s / (FOLLOW_S * max(1.0, 2 * self._latency_s))))
        self.share = min(max(self.share, LEAST_SHARE), MOST_SHARE)

    def _off_target(self, now_s: float) -> float:
        """-1 … 1. Big buckets need no more reserve than what flows until we hear of a change."""
        unseen = (self.refill.rate or 0.0) * (0.5 + 2 * self._latency_s)
        target = min(TARGET * self.capacity, max(4 * self.unit, unseen))
        return min(1.0, max(-1.0, (self.level(now_s) - target) / target))
