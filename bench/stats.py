"""Numbers about many requests, and the verdict on them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec


class Spread(msgspec.Struct, frozen=True):
    """How values are spread: `percentiles[p]` for p from 0 to 100. Empty where there was no value."""

    count: int
    percentiles: tuple[float, ...]

    def p(self, percent: int) -> float:
        """NaN where there was no value."""
        return self.percentiles[percent] if self.percentiles else math.nan


def spread(values: Sequence[float]) -> Spread:
    """Percentiles by the nearest rank: each is a value that was seen."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return Spread(len(ordered), tuple(round(ordered[math.ceil(last * p / 100)], 3) for p in range(101)) if ordered else ())


def steady_rate(times_s: Sequence[float], wave: int) -> float | None:
    """Events a second, where up to `wave` of them may come at once: between two of the same place in their waves, as a window's
    ends would gain or lose a wave. None where there are not two waves."""
    waves = (len(times_s) - 1) // wave
    return waves * wave / (times_s[waves * wave] - times_s[0]) if waves > 0 else None


class Target(msgspec.Struct, frozen=True):
    """What a figure has to be; all that is given has to hold. `of_floor`: times the floor, at most."""

    at_most: float | None = None
    at_least: float | None = None
    of_floor: float | None = None

    def __str__(self) -> str:
        parts = [("≤ {:g}", self.at_most), ("≥ {:g}", self.at_least), ("≤ {:g} × floor", self.of_floor)]
        return ", ".join(words.format(value) for words, value in parts if value is not None)


def is_met(target: Target, measured: float | None, floor: float | None) -> bool:
    """Nothing measured meets nothing."""
    if measured is None:
        return False
    holds = [target.at_most is None or measured <= target.at_most, target.at_least is None or measured >= target.at_least]
    if target.of_floor is not None:
        holds.append(floor is not None and measured <= target.of_floor * floor)
    return all(holds)


class Row(msgspec.Struct, frozen=True):
    """One figure of the table. measured: None where nothing came that could be."""

    scenario: str
    broker: str
    what: str
    unit: str
    measured: float | None
    floor: float | None = None
    target: Target | None = None

    @property
    def verdict(self) -> str:
        """"" where there is no target."""
        return "" if self.target is None else "met" if is_met(self.target, self.measured, self.floor) else "NOT MET"
