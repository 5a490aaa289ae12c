"""How many requests at once the model makes use of: found by trying, and by what it brings in tokens a second.

First twice as many each time, as nothing is known yet; from the first try that brought too little on, in small steps and
seldom. A try that does not pay, by two measurements, is taken back: requests beyond only make each other slower, and
another node could have them. By two, as new requests have their prompts read first, which holds up the others.
Pure: `note` takes what was measured, `step` decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from limits.sample import Rate

SETTLE_S = 1.0  # after a change, until what is measured counts: new requests have their prompts read first
READINGS = 2  # of some two seconds each, make one measurement
UNMEASURED_STEP_S = 5.0  # between steps where no tokens are seen
FIRST_PAUSE_S, LONGEST_PAUSE_S = 30.0, 600.0  # after a try that did not pay
SMALL_STEP = 4  # a quarter of the limit
FORGOTTEN_AFTER_S = 60.0  # a try that could not be measured, for want of requests


@dataclass(frozen=True)
class Search:
    """`base`: the limit that the present one is tried against, with its rate; None: nothing is being tried."""

    readings: tuple[float, ...] = ()
    read_until_s: float = -math.inf
    base: int | None = None
    base_rate: float = 0.0
    is_doubted: bool = False  # the first measurement was too little
    tried_at_s: float = -math.inf
    doubles: bool = True
    not_before_s: float = -math.inf
    pause_s: float = FIRST_PAUSE_S

    def interrupted(self, now_s: float, *, failed: bool) -> Search:
        """The limit was changed for another reason. `failed`: what was tried brought the trouble."""
        paused = replace(self, readings=(), base=None, doubles=False)
        return _paused(paused, now_s) if failed else paused


def note(search: Search, rate: Rate | None, *, changed_at_s: float, used: bool, now_s: float) -> Search:
    """With each sample. A rate counts where the limit was used to its end and had not changed meanwhile."""
    if search.base is not None and now_s - search.tried_at_s > FORGOTTEN_AFTER_S:
        search = replace(search, base=None)
    if not used:
        return replace(search, readings=())
    if rate is None or rate.from_s < changed_at_s + SETTLE_S or rate.to_s <= search.read_until_s:
        return search
    return replace(search, readings=(*search.readings, rate.tokens_per_s)[-READINGS:], read_until_s=rate.to_s)


def step(search: Search, limit: int, most: int, worth: float, now_s: float) -> tuple[int, str, Search]:
    """The limit from now on, why, and the search's next state. `worth`: twice as many at once have to bring so much more
    (0.05: a twentieth); `most`: the highest limit that there is room for."""
    if len(search.readings) < READINGS:
        return limit, "", search
    rate = sum(search.readings) / len(search.readings)
    if search.base is not None:
        if rate < search.base_rate * (1 + worth * math.log2(limit / search.base)):
            if not search.is_doubted:
                return limit, "", replace(search, readings=(), is_doubted=True)
            why = f"{limit} at once bring {rate:.3g} tokens/s, {search.base} brought {search.base_rate:.3g}"
            return search.base, why, _paused(replace(search, readings=(), base=None, doubles=False), now_s)
        search = replace(search, base=None, pause_s=FIRST_PAUSE_S)
    raised = _raised(search, limit, most, now_s)
    if raised == limit:
        return limit, "", search
    tried = replace(search, readings=(), base=limit, base_rate=rate, is_doubted=False, tried_at_s=now_s)
    return raised, f"all {limit} are in use and bring {rate:.3g} tokens/s; {raised} are tried", tried


def unmeasured_step(search: Search, limit: int, most: int, changed_at_s: float, now_s: float) -> tuple[int, str, Search]:
    """As `step`, where the model does not tell of tokens while it works."""
    raised = _raised(search, limit, most, now_s) if now_s - changed_at_s >= UNMEASURED_STEP_S else limit
    return raised, "" if raised == limit else f"all {limit} are in use", search


def _raised(search: Search, limit: int, most: int, now_s: float) -> int:
    if now_s < search.not_before_s:
        return limit
    return max(limit, min(most, limit + (limit if search.doubles else max(1, limit // SMALL_STEP))))


def _paused(search: Search, now_s: float) -> Search:
    return replace(search, not_before_s=now_s + search.pause_s, pause_s=min(2 * search.pause_s, LONGEST_PAUSE_S))
