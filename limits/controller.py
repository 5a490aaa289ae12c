"""How many requests the local node takes at once: a pure function of samples.

Additive increase, multiplicative decrease. Memory short: half; critical: 1. Others' CPU use high for a while: one less.
The model's own CPU use is no reason: a busy model is what the node is for.

Why it starts at the upper bound: the model server has allocated all of its slots' memory when it is ready, so that
requests add little; where that proves wrong, one step cuts it in half, while a slow start would cost every node
minutes of throughput.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from limits.sampling import Sample

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Thresholds:
    """When to change. Between `short` and `healthy` nothing changes: that gap is what keeps the limit from flapping."""

    short_share: float = 0.05  # of total memory
    critical_share: float = 0.02
    short_cap_bytes: int = 2 * GIB  # 5 % of a big machine would be no shortage
    healthy_factor: float = 1.6  # of the short level
    others_high: float = 0.60  # of all cores
    others_healthy: float = 0.45
    others_high_for_s: float = 10.0
    halve_every_s: float = 5.0  # what a cut frees comes free as requests end
    step_every_s: float = 5.0
    retry_every_s: float = 60.0  # before the limit that met trouble is tried again
    used_share: float = 0.9  # of the limit in flight: more is asked for


@dataclass(frozen=True)
class LimitState:
    """What the next decision needs of the past. Times are monotonic seconds."""

    limit: int
    bound: int
    changed_at_s: float = -math.inf
    healthy_since_s: float | None = None
    others_high_since_s: float | None = None
    trouble_at: int | None = None  # the limit at which there was trouble last

    @classmethod
    def starting(cls, bound: int) -> LimitState:
        return cls(limit=max(1, bound), bound=max(1, bound))

    def with_bound(self, bound: int) -> LimitState:
        """Another upper bound (a model server came or went): a limit that was at the old one goes along, a cut one stays cut."""
        bound = max(1, bound)
        limit = bound if self.limit >= self.bound else min(self.limit, bound)
        return replace(self, bound=bound, limit=limit)


@dataclass(frozen=True)
class Decision:
    limit: int
    state: LimitState
    why: str | None  # one line with readings and cause; None where nothing changed


def next_limit(sample: Sample, state: LimitState, thresholds: Thresholds | None = None) -> Decision:
    """The limit from now on, from 1 to the state's bound. Call it with each sample, one every second or so."""
    at = thresholds or Thresholds()
    state = _noted(sample, state, at)
    limit, cause = _memory_cut(sample, state, at) or _cpu_cut(sample, state, at) or _increase(sample, state, at) or (state.limit, "")
    if limit == state.limit:
        return Decision(limit, state, None)
    why = f"limit {state.limit} → {limit}: {cause}"
    return Decision(limit, _changed(state, limit, sample.at_s), why)


def _noted(sample: Sample, state: LimitState, at: Thresholds) -> LimitState:
    """The state with its clocks set by this sample."""
    others_high = sample.others_cpu_share is not None and sample.others_cpu_share >= at.others_high
    return replace(
        state,
        healthy_since_s=_since(_healthy(sample, at), state.healthy_since_s, sample.at_s),
        others_high_since_s=_since(others_high, state.others_high_since_s, sample.at_s),
    )


def _since(holds: bool, since_s: float | None, now_s: float) -> float | None:
    if not holds:
        return None
    return now_s if since_s is None else since_s


def _healthy(sample: Sample, at: Thresholds) -> bool:
    """What could not be measured counts as healthy: without any source the limit is its bound."""
    short = _short_bytes(sample, at.short_share, at)
    memory = short is None or sample.available_memory_bytes is None or sample.available_memory_bytes >= short * at.healthy_factor
    return memory and (sample.others_cpu_share is None or sample.others_cpu_share <= at.others_healthy)


def _short_bytes(sample: Sample, share: float, at: Thresholds) -> float | None:
    if sample.total_memory_bytes is None:
        return None
    return min(sample.total_memory_bytes * share, at.short_cap_bytes * share / at.short_share)


def _memory_cut(sample: Sample, state: LimitState, at: Thresholds) -> tuple[int, str] | None:
    available = sample.available_memory_bytes
    for share, target, wait_s in ((at.critical_share, 1, 0.0), (at.short_share, state.limit // 2, at.halve_every_s)):
        level = _short_bytes(sample, share, at)
        if available is None or level is None or available >= level:
            continue
        # The next, milder level must not follow at once on a cut; the critical one may.
        if sample.at_s - state.changed_at_s < wait_s:
            return state.limit, ""
        return max(1, target), _memory_words(sample, available, level, share)
    return None


def _memory_words(sample: Sample, available: int, level: float, share: float) -> str:
    total = sample.total_memory_bytes or 0
    below = f"{share:.0%} of {_size(total)}".replace("%", " %") if level >= total * share else f"{_size(level)}"
    model = f"; the model holds {_size(sample.model_rss_bytes)}" if sample.model_rss_bytes else ""
    return f"{_size(available)} of memory available, below {below}{model}"


def _cpu_cut(sample: Sample, state: LimitState, at: Thresholds) -> tuple[int, str] | None:
    if state.others_high_since_s is None or sample.others_cpu_share is None:
        return None
    high_for_s = sample.at_s - max(state.others_high_since_s, state.changed_at_s)
    if high_for_s < at.others_high_for_s:
        return None
    return max(1, state.limit - 1), f"other programs use {_percent(sample.others_cpu_share)} of the CPU, for {high_for_s:.0f} s"


def _increase(sample: Sample, state: LimitState, at: Thresholds) -> tuple[int, str] | None:
    used = sample.in_flight >= at.used_share * state.limit
    if state.limit >= state.bound or state.healthy_since_s is None or not used:
        return None
    wait_s = at.retry_every_s if state.trouble_at is not None and state.limit + 1 >= state.trouble_at else at.step_every_s
    if sample.at_s - max(state.healthy_since_s, state.changed_at_s) < wait_s:
        return None
    return state.limit + 1, f"healthy for {wait_s:.0f} s with {sample.in_flight} in flight{_readings(sample)}"


def _changed(state: LimitState, limit: int, now_s: float) -> LimitState:
    """A cut remembers where there was trouble; a step past that place forgets it."""
    trouble_at = state.trouble_at
    if limit < state.limit:
        trouble_at = state.limit
    elif trouble_at is not None and limit > trouble_at:
        trouble_at = None
    return replace(state, limit=limit, changed_at_s=now_s, trouble_at=trouble_at)


def _readings(sample: Sample) -> str:
    words = ""
    if sample.available_memory_bytes is not None:
        words += f", {_size(sample.available_memory_bytes)} of memory available"
    if sample.others_cpu_share is not None:
        words += f", other programs at {_percent(sample.others_cpu_share)} of the CPU"
    return words


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _size(size_bytes: float) -> str:
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:.0f} MiB"
