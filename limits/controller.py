"""How many requests the local node takes at once: a pure function of samples, from 1 to the model servers' slots.

Down at once where the machine is short: memory low, or falling so fast that it will be; tasks that stand still for want of
memory; a GPU that is full or too hot: half. Memory all but gone: one. Others use much of the CPU: in proportion to what
they leave. The model's own CPU use is no reason: a busy model is what the node is for.

Up, once the machine has had room for a while: in doubling steps to where it was before the trouble, and from there on by
search.py, as long as it is used and brings more tokens. A limit that brought the trouble back is not returned to.

Why it starts low and doubles: what a request costs in memory is not known before some have run, and with steps of a few
seconds even 128 are reached within a minute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from limits.sample import Gpu, Memory, Sample
from limits.search import Search, note, step, unmeasured_step
from limits.words import GIB, memory_words, percent, readings, size

START = 4
CRITICAL = 0.4  # of the reserve
MOST_RESERVED_BYTES = 2 * GIB  # 5 % of a big machine would be no shortage
# Between short and healthy nothing changes: these gaps keep the limit from flapping.
HEALTHY_MEMORY, HEALTHY_STALL, HEALTHY_CPU = 1.6, 0.5, 0.7  # times the level of trouble
NEVER = 1.0  # a threshold that is not looked at
CONTENDED_SHARE = 0.1  # somebody waits for the CPU: others' use of it takes something away
FALLING_BELOW, FALLS_WITHIN_S = 3.0, 2.0  # reserves; at its present speed
CUT_EACH_S = 2.0  # what a cut frees comes free as requests end
CONFIRMED_AFTER_S = 0.4  # by the next sample: one alone may be chance
SLOWED_FOR_S = 10.0
FIRST_PATIENCE_S, LONGEST_PATIENCE_S = 3.0, 60.0  # how long the machine has to be healthy before the limit goes back up
DOUBLE_EACH_S = 3.0
FIRST_CEILING_S, LONGEST_CEILING_S = 60.0, 600.0
RELAPSE_WITHIN_S = 20.0  # of a raise: the raise brought the trouble back
CALM_AFTER_S = 120.0
UNMEASURED_FOR_S = 6.0  # a new child tells of its output for the first time after two leases
COST_MARGIN = 1.25  # requests differ, and what was seen was the mean of some that had not all of it yet
COST_KEPT = 0.998  # of what a request was seen to cost in memory, from sample to sample: half of it in three minutes
GROWTH_OVER_S = 2.0  # for a change of how fast the model's memory grows to count by two thirds
GROWS_ON_S = 10.0  # how long requests that grow are taken to go on growing


@dataclass(frozen=True)
class Thresholds:
    """When to change; each is a setting, LOCAL_…"""

    memory_reserve: float = 0.05  # of the machine's or the cgroup's memory, that is to stay available
    memory_stall: float = 0.10  # of the time, in which somebody waits for memory
    others_cpu: float = 0.40  # of the CPU that is ours to use
    worth: float = 0.05  # what twice as many requests at once have to bring in tokens a second


@dataclass(frozen=True)
class LimitState:
    """What the next decision needs of the past. Times are monotonic seconds.

    goal: the limit before the trouble, to go back to. ceiling: a limit above brought the trouble back, and is not tried
    again before `ceiling_until_s`. since_s: from when on a condition has held."""

    limit: int
    bound: int
    changed_at_s: float = -math.inf
    raised_at_s: float = -math.inf
    cut_at_s: float = -math.inf
    goal: int | None = None
    ceiling: int = 1 << 30
    ceiling_until_s: float = -math.inf
    ceiling_for_s: float = FIRST_CEILING_S
    patience_s: float = FIRST_PATIENCE_S
    since_s: dict[str, float] = field(default_factory=dict)
    last: Sample | None = None
    least_private_bytes: int | None = None
    cost_bytes: float = 0.0  # of memory, by each request
    growth_bytes_per_s: float = 0.0  # of what the model holds
    search: Search = field(default_factory=Search)

    @classmethod
    def starting(cls, bound: int) -> LimitState:
        return cls(limit=max(1, min(START, bound)), bound=max(1, bound))

    def with_bound(self, bound: int) -> LimitState:
        """Another upper bound: a model server came or went. What the limit was is gone back to, once there is room."""
        bound = max(1, bound)
        goal = max(self.limit, self.goal or 0) if self.limit > bound or self.goal else None
        return replace(self, bound=bound, limit=min(self.limit, bound), goal=goal, last=None, least_private_bytes=None)


@dataclass(frozen=True)
class Decision:
    limit: int
    state: LimitState
    why: str | None  # one line with readings and cause; None where nothing changed


def next_limit(sample: Sample, state: LimitState, thresholds: Thresholds | None = None) -> Decision:
    """The limit from now on, from 1 to the state's bound. Call it with each sample, one or two every second."""
    at = thresholds or Thresholds()
    state = _noted(sample, state, at)
    limit, cause = _cut(sample, state, at)
    if limit < state.limit:
        return _decided(sample, _after_cut(sample, state, limit), state.limit, cause)
    limit, cause, search = _raise(sample, state, at)
    after = replace(state, search=search, last=sample)
    if limit > state.limit:
        goal = None if state.goal is None or limit >= state.goal else state.goal
        after = replace(after, limit=limit, goal=goal, changed_at_s=sample.at_s, raised_at_s=sample.at_s)
    elif limit < state.limit:  # a try that did not pay: no trouble
        after = replace(after, limit=limit, changed_at_s=sample.at_s, raised_at_s=-math.inf)
    return _decided(sample, after, state.limit, cause)


def _decided(sample: Sample, after: LimitState, before: int, cause: str) -> Decision:
    why = None if after.limit == before else f"limit {before} → {after.limit}: {cause}"
    return Decision(after.limit, replace(after, last=sample), why)


# what is noted of each sample


def _noted(sample: Sample, state: LimitState, at: Thresholds) -> LimitState:
    """The state with its clocks set, and with what requests were seen to cost and to bring."""
    conditions = {
        "healthy": _healthy(sample, at),
        "stalled": at.memory_stall < NEVER and (sample.memory_stall_share or 0.0) >= at.memory_stall,
        "crowded": _crowded(sample, at),
        "slowed": any(gpu.slowed_by for gpu in sample.gpus),
        "unmeasured": sample.rate is None,
    }
    since_s = {name: state.since_s.get(name, sample.at_s) for name, holds in conditions.items() if holds}
    calm = sample.at_s - state.cut_at_s > CALM_AFTER_S
    search = note(state.search, sample.rate, changed_at_s=state.changed_at_s, used=_is_used(sample, state), now_s=sample.at_s)
    state = replace(state, since_s=since_s, search=search, patience_s=FIRST_PATIENCE_S if calm else state.patience_s)
    if sample.at_s - state.cut_at_s > 2 * state.ceiling_for_s:
        state = replace(state, ceiling_for_s=FIRST_CEILING_S)
    return _with_cost(sample, state)


def _with_cost(sample: Sample, state: LimitState) -> LimitState:
    """Many servers allocate everything at their start; of those that do not, what each request adds. What one alone takes is
    for the most part what any number takes once."""
    held = sample.model_private_bytes
    if held is None:
        return state
    least = min(held, state.least_private_bytes or held)
    seen = (held - least) / _sharing(sample, state) if sample.in_flight else 0.0
    growth = _growth_bytes_per_s(sample, state, held)
    return replace(state, least_private_bytes=least, cost_bytes=max(seen, COST_KEPT * state.cost_bytes), growth_bytes_per_s=growth)


def _sharing(sample: Sample, state: LimitState) -> int:
    return max(sample.in_flight, min(START, state.bound))


def _growth_bytes_per_s(sample: Sample, state: LimitState, held: int) -> float:
    """Smoothed, as requests begin and end in between."""
    last, past_s = _before(sample, state)
    if last is None or last.model_private_bytes is None:
        return state.growth_bytes_per_s
    kept = math.exp(-past_s / GROWTH_OVER_S)
    return max(0.0, kept * state.growth_bytes_per_s + (1 - kept) * (held - last.model_private_bytes) / past_s)


def _before(sample: Sample, state: LimitState) -> tuple[Sample | None, float]:
    """The sample before this one, and how many seconds before it; None where none was."""
    past_s = sample.at_s - state.last.at_s if state.last else 0.0
    return (state.last, past_s) if past_s > 0 else (None, 0.0)


def _is_used(sample: Sample, state: LimitState) -> bool:
    """More is asked for: all but an eighth are in flight, as one that has just ended is not replaced yet."""
    return sample.in_flight >= max(1, state.limit - max(1, state.limit // 8))


def _healthy(sample: Sample, at: Thresholds) -> bool:
    """What could not be measured counts as healthy."""
    return (
        all(m.available_bytes >= HEALTHY_MEMORY * _reserve(m, at) for m in sample.memory)
        and ((sample.memory_stall_share or 0.0) <= HEALTHY_STALL * at.memory_stall or at.memory_stall >= NEVER)
        and ((sample.others_cpu_share or 0.0) <= HEALTHY_CPU * at.others_cpu or not _is_contended(sample) or at.others_cpu >= NEVER)
        and not any(gpu.slowed_by or _is_full(gpu, at) for gpu in sample.gpus)
    )


def _crowded(sample: Sample, at: Thresholds) -> bool:
    if at.others_cpu >= NEVER:
        return False
    return sample.in_flight > 0 and (sample.others_cpu_share or 0.0) >= at.others_cpu and _is_contended(sample)


def _is_contended(sample: Sample) -> bool:
    return sample.cpu_wait_share is None or sample.cpu_wait_share >= CONTENDED_SHARE


def _reserve(memory: Memory, at: Thresholds) -> float:
    return min(at.memory_reserve * memory.total_bytes, MOST_RESERVED_BYTES)


def _is_full(gpu: Gpu, at: Thresholds) -> bool:
    reserve = min(at.memory_reserve * gpu.total_bytes, MOST_RESERVED_BYTES)
    return gpu.free_bytes < reserve and gpu.free_bytes < gpu.free_when_ready_bytes / 2


def _tightest(sample: Sample, at: Thresholds) -> Memory | None:
    return min(sample.memory, key=lambda m: m.available_bytes / max(1.0, _reserve(m, at)), default=None)


# down


def _cut(sample: Sample, state: LimitState, at: Thresholds) -> tuple[int, str]:
    """The first reason that there is."""
    found = _critical(sample, at) or _short(sample, state, at) or _crowded_out(sample, state, at)
    if found is None or (found[2] and sample.at_s - state.cut_at_s < CUT_EACH_S):
        return state.limit, ""
    return min(state.limit, max(1, found[0])), found[1]


def _critical(sample: Sample, at: Thresholds) -> tuple[int, str, bool] | None:
    memory = _tightest(sample, at)
    if memory is None or memory.available_bytes >= CRITICAL * _reserve(memory, at):
        return None
    return 1, memory_words(sample, memory, CRITICAL * _reserve(memory, at)), False


def _short(sample: Sample, state: LimitState, at: Thresholds) -> tuple[int, str, bool] | None:
    """Half, as far as any of these holds."""
    memory, half = _tightest(sample, at), state.limit // 2
    if memory is not None and memory.available_bytes < _reserve(memory, at):
        return half, memory_words(sample, memory, _reserve(memory, at)), True
    if memory is not None and (fall := _fall_per_s(sample, state, memory)) and _will_be_gone(memory, fall, at):
        return half, memory_words(sample, memory, fall_per_s=fall), True
    if _has_held(sample, state, "stalled", CONFIRMED_AFTER_S):
        return half, f"programs stand still for want of memory {percent(sample.memory_stall_share or 0)} of the time", True
    full = next((gpu for gpu in sample.gpus if _is_full(gpu, at)), None)
    if full is not None:
        return half, f"{size(full.free_bytes)} of {size(full.total_bytes)} are free on {full.name}", True
    if _has_held(sample, state, "slowed", SLOWED_FOR_S) and sample.at_s - state.cut_at_s >= SLOWED_FOR_S:
        slowed = next(gpu for gpu in sample.gpus if gpu.slowed_by)
        heat = f" at {slowed.temperature_c} °C" if slowed.temperature_c is not None else ""
        return state.limit * 3 // 4, f"{slowed.name} slows itself down{heat}: {slowed.slowed_by}", True
    return None


def _fall_per_s(sample: Sample, state: LimitState, memory: Memory) -> float:
    """How fast it gets less there, by the sample before; what a raise of ours takes at first is no trend."""
    if sample.at_s - state.raised_at_s < DOUBLE_EACH_S:
        return 0.0
    last, past_s = _before(sample, state)
    before = next((m for m in last.memory if m.where == memory.where), None) if last else None
    return max(0.0, (before.available_bytes - memory.available_bytes) / past_s) if before else 0.0


def _will_be_gone(memory: Memory, fall_per_s: float, at: Thresholds) -> bool:
    reserve = _reserve(memory, at)
    is_near = memory.available_bytes < FALLING_BELOW * reserve
    return is_near and memory.available_bytes - FALLS_WITHIN_S * fall_per_s < CRITICAL * reserve


def _crowded_out(sample: Sample, state: LimitState, at: Thresholds) -> tuple[int, str, bool] | None:
    """What others leave of the CPU, of the limit that was good with all of it."""
    if not _has_held(sample, state, "crowded", CONFIRMED_AFTER_S):
        return None
    others = sample.others_cpu_share or 0.0
    return math.floor((state.goal or state.limit) * (1 - others)), f"other programs use {percent(others)} of the CPU", True


def _has_held(sample: Sample, state: LimitState, condition: str, for_s: float) -> bool:
    since_s = state.since_s.get(condition)
    return since_s is not None and sample.at_s - since_s >= for_s


def _after_cut(sample: Sample, state: LimitState, limit: int) -> LimitState:
    relapsed = sample.at_s - state.raised_at_s < RELAPSE_WITHIN_S
    goal = max(1, state.limit * 3 // 4) if relapsed else max(state.limit, state.goal or 0)
    after = replace(
        state, limit=limit, goal=goal if goal > limit else None, changed_at_s=sample.at_s, cut_at_s=sample.at_s,
        raised_at_s=-math.inf, search=state.search.interrupted(sample.at_s, failed=relapsed),
    )  # fmt: skip
    return _relapsed(after, state.limit, sample.at_s) if relapsed else after


def _relapsed(state: LimitState, was: int, now_s: float) -> LimitState:
    """The raise to what the limit was brought the trouble back: the next one waits longer, and stays below for a while."""
    return replace(
        state, patience_s=min(2 * state.patience_s, LONGEST_PATIENCE_S), ceiling=max(1, was - 1),
        ceiling_until_s=now_s + state.ceiling_for_s, ceiling_for_s=min(2 * state.ceiling_for_s, LONGEST_CEILING_S),
    )  # fmt: skip


# up


def _raise(sample: Sample, state: LimitState, at: Thresholds) -> tuple[int, str, Search]:
    is_soon = sample.at_s - state.cut_at_s < state.patience_s
    if is_soon or not _has_held(sample, state, "healthy", state.patience_s):
        return state.limit, "", state.search
    most = min(state.bound, _has_room_for(sample, state, at), state.ceiling if sample.at_s < state.ceiling_until_s else state.bound)
    if state.goal is not None and state.limit < state.bound:
        return _go_back(sample, state, most)
    if _has_held(sample, state, "unmeasured", UNMEASURED_FOR_S) and _is_used(sample, state):
        return unmeasured_step(state.search, state.limit, most, state.changed_at_s, sample.at_s)
    return step(state.search, state.limit, most, at.worth, sample.at_s)


def _go_back(sample: Sample, state: LimitState, most: int) -> tuple[int, str, Search]:
    if sample.at_s - state.raised_at_s < DOUBLE_EACH_S:
        return state.limit, "", state.search
    limit = max(state.limit, min(2 * state.limit, state.goal or 1, most))
    why = f"back towards {state.goal}, as there is room again{readings(sample)}"
    return limit, why, state.search.interrupted(sample.at_s, failed=False)


def _has_room_for(sample: Sample, state: LimitState, at: Thresholds) -> int:
    """The highest limit whose requests would fit, by what those before were seen to cost at most, and by how they grow now:
    those in flight may have only begun, and take the rest of it still."""
    memory = _tightest(sample, at)
    cost_bytes = state.cost_bytes + GROWS_ON_S * state.growth_bytes_per_s / _sharing(sample, state)
    if memory is None or cost_bytes < 1:
        return state.bound
    taken_bytes = (sample.model_private_bytes or 0) - (state.least_private_bytes or 0)
    room_bytes = memory.available_bytes + taken_bytes - HEALTHY_MEMORY * _reserve(memory, at)
    return math.floor(room_bytes / (COST_MARGIN * cost_bytes))
