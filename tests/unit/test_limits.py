"""The limit over time: within its bounds, down in time and back up, no flapping, and a reason for each change."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from limits.controller import Decision, LimitState, Thresholds, next_limit
from limits.sample import Gpu, Memory, Rate, Sample

GIB, MIB = 2**30, 2**20
EACH_S = 0.5


def machine(available_share: float, total_gib: float = 16.0, where: str = "the machine") -> Memory:
    return Memory(where, int(available_share * total_gib * GIB), int(total_gib * GIB))


def run(state: LimitState, samples: Iterable[Sample]) -> list[Decision]:
    decisions = []
    for each in samples:
        decisions.append(next_limit(each, state))
        state = decisions[-1].state
    return decisions


def limits(decisions: list[Decision]) -> list[int]:
    return [decision.limit for decision in decisions]


def at(limit: int, bound: int = 16) -> LimitState:
    return LimitState(limit=limit, bound=bound)


# whatever is measured

SHARES = st.none() | st.floats(0, 1)
MEMORIES = st.lists(st.builds(machine, st.floats(0, 1), st.floats(0.1, 4096), st.sampled_from(["the machine", "cgroup /a"])), max_size=2)
GPUS = st.lists(st.builds(
    Gpu, st.just("GPU 0"), st.integers(0, 80 * GIB), st.just(80 * GIB), st.integers(0, 80 * GIB), SHARES, st.none() | st.integers(20, 99),
    st.sampled_from(["", "heat"]),
), max_size=2)  # fmt: skip
STEPS = st.lists(
    st.tuples(
        st.floats(0, 30), MEMORIES, st.none() | st.integers(0, 2**40), SHARES, SHARES, SHARES, GPUS, st.none() | st.floats(0, 1e4),
        st.integers(0, 200),
    ),
    max_size=40,
)  # fmt: skip
SIMULATED = settings(deadline=None, max_examples=8)


def samples_of(steps: list[tuple[float, list[Memory], int | None, float | None, float | None, float | None, list[Gpu], float | None, int]],
               from_s: float = 0.0) -> list[Sample]:  # fmt: skip
    found, now = [], from_s
    for on_s, memory, private, stall, others, wait, gpus, rate, in_flight in steps:
        told = None if rate is None else Rate(rate, now, now + on_s)
        now += on_s
        found.append(Sample(now, in_flight, tuple(memory), private, private, stall, others, wait, tuple(gpus), told))
    return found


@given(st.integers(-1, 200), STEPS)
def test_never_out_of_bounds_and_a_reason_for_each_change(bound: int, steps: list[object]) -> None:
    state = LimitState.starting(bound)
    for sample in samples_of(steps):  # type: ignore[arg-type]
        decision = next_limit(sample, state)
        assert 1 <= decision.limit <= max(1, bound) and decision.state.limit == decision.limit
        assert (decision.why is None) == (decision.limit == state.limit)
        if decision.why:
            assert f"limit {state.limit} → {decision.limit}: " in decision.why and "\n" not in decision.why
        state = decision.state


@SIMULATED
@given(st.integers(1, 64), STEPS)
def test_recovers_from_whatever_happened(bound: int, steps: list[object]) -> None:
    """With room for everything, and a model that makes use of it."""
    samples = samples_of(steps)  # type: ignore[arg-type]
    state = run(LimitState.starting(bound), samples)[-1].state if samples else LimitState.starting(bound)
    sim = Simulated(state, tokens_per_s=lambda limit: 10.0 * limit)
    sim.now_s = (samples[-1].at_s if samples else 0.0) + EACH_S
    sim.go(1500)
    assert sim.state.limit == bound


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 64), MEMORIES, SHARES, SHARES, SHARES, GPUS, st.integers(0, 64))
def test_constant_samples_settle(
    bound: int, memory: list[Memory], stall: float | None, others: float | None, wait: float | None, gpus: list[Gpu], in_flight: int
) -> None:
    constant = [Sample(t, in_flight, tuple(memory), None, None, stall, others, wait, tuple(gpus)) for t in range(600)]
    assert len(set(limits(run(LimitState.starting(bound), constant))[-300:])) == 1


# a machine that answers to the limit


@dataclass
class Simulated:
    """A node whose requests never run out. `tokens_per_s` by the limit; memory in MiB: what others take, and each request."""

    state: LimitState
    tokens_per_s: Callable[[int], float]
    noise: float = 0.0
    total_mib: float = 16_384
    others_mib: Callable[[float], float] = lambda now_s: 4000.0
    request_mib: float = 0.0
    others_cpu: Callable[[float], float] = lambda now_s: 0.05
    now_s: float = 0.0
    dice: random.Random = field(default_factory=lambda: random.Random(1))
    seen: list[tuple[float, int]] = field(default_factory=list)
    whys: list[str] = field(default_factory=list)
    least_mib: float = 1e9
    _held_mib: float = 0.0
    _made: float = 0.0
    _rate: Rate | None = None
    _rated_s: float = 0.0

    def go(self, for_s: float) -> Simulated:
        for _ in range(int(for_s / EACH_S)):
            self._turn()
        return self

    def _turn(self) -> None:
        limit = self.state.limit
        in_flight = self._hold(limit)
        self._made += self.tokens_per_s(limit) * (1 - self.others_cpu(self.now_s)) * EACH_S * (1 + self.noise * self.dice.uniform(-1, 1))
        if (measured_s := self.now_s - self._rated_s) >= 2.0:
            self._rate = Rate(self._made / measured_s, self._rated_s, self.now_s)
            self._made, self._rated_s = 0.0, self.now_s
        free_mib = self.total_mib - 1000 - self._held_mib - self.others_mib(self.now_s)
        self.least_mib = min(self.least_mib, free_mib)
        memory = Memory("the machine", int(max(0.0, free_mib) * MIB), int(self.total_mib * MIB))
        held = int((1000 + self._held_mib) * MIB)
        decision = next_limit(
            Sample(self.now_s, in_flight, (memory,), held, held, 0.0, self.others_cpu(self.now_s), 1.0, (), self._rate), self.state
        )
        self.state = decision.state
        self.seen.append((self.now_s, decision.limit))
        if decision.why:
            self.whys.append(f"{self.now_s:.1f} {decision.why}")
        self.now_s += EACH_S

    def _hold(self, limit: int) -> int:
        """Memory comes and goes with the limit. How many are in flight."""
        self._held_mib += (self.request_mib * limit - self._held_mib) * 0.4
        return limit

    def between(self, from_s: float, to_s: float) -> list[int]:
        return [limit for at_s, limit in self.seen if from_s <= at_s < to_s]

    def changes(self, from_s: float, to_s: float) -> int:
        return sum(a != b for a, b in itertools.pairwise(self.between(from_s, to_s)))


def saturating(best: float, at_limit: int) -> Callable[[int], float]:
    """Rises in proportion to `at_limit`, and not beyond."""
    return lambda limit: best * min(1.0, limit / at_limit)


def cpu_model(limit: int) -> float:
    """SmolLM2 on two cores: most of it comes from the first request already, and too many cost something."""
    return {1: 67.0, 2: 72.0, 3: 75.0}.get(limit, 78.0 + min(2.0, 0.5 * (limit - 4)) - max(0.0, 0.6 * (limit - 8)))


@SIMULATED
@given(st.sampled_from([1, 2, 4, 8, 16, 64]), st.sampled_from([4, 8, 16, 64, 128]), st.floats(0, 0.03), st.integers(0, 1000))
def test_finds_what_the_model_makes_use_of_and_stays_there(knee: int, bound: int, noise: float, seed: int) -> None:
    sim = Simulated(LimitState.starting(bound), saturating(80.0, knee), noise, dice=random.Random(seed)).go(600)
    rates = [sim.tokens_per_s(limit) for limit in sim.between(120, 600)]
    assert sum(rates) / len(rates) >= 0.95 * sim.tokens_per_s(bound)
    assert sim.changes(300, 600) <= 30


@SIMULATED
@given(st.sampled_from([4, 8, 16, 32]), st.floats(0, 0.03), st.integers(0, 1000))
def test_a_cpus_flat_curve_loses_little(bound: int, noise: float, seed: int) -> None:
    sim = Simulated(LimitState.starting(bound), cpu_model, noise, dice=random.Random(seed)).go(600)
    best = max(cpu_model(limit) for limit in range(1, bound + 1))
    rates = [cpu_model(limit) for limit in sim.between(0, 600)]
    assert sum(rates) / len(rates) >= 0.95 * best
    assert sim.changes(60, 600) <= 40


def test_prompts_that_hold_up_what_runs_are_no_reason_to_go_back() -> None:
    raised: list[tuple[int, float]] = []

    def tokens_per_s(limit: int) -> float:
        if not raised or limit != raised[-1][0]:
            raised.append((limit, sim.now_s))
        return limit * (4.0 if len(raised) > 1 and sim.now_s - raised[-1][1] < 6.0 else 10.0)

    sim = Simulated(LimitState.starting(16), tokens_per_s)
    sim.go(60)
    assert [limit for limit, _ in raised] == [4, 8, 16], sim.whys


def test_a_big_gpu_is_used_within_a_minute() -> None:
    sim = Simulated(LimitState.starting(128), lambda limit: 30.0 * limit).go(60)
    assert sim.state.limit == 128


def test_an_unused_limit_is_not_raised_and_an_unmeasured_one_is() -> None:
    idle = [Sample(t * EACH_S, 2, rate=Rate(20.0, t * EACH_S - 2, t * EACH_S)) for t in range(200)]
    assert set(limits(run(LimitState.starting(16), idle))) == {4}
    unmeasured = [Sample(t * EACH_S, 16) for t in range(200)]
    assert limits(run(LimitState.starting(16), unmeasured))[-1] == 16


@SIMULATED
@given(st.floats(20, 2000), st.integers(0, 100))
@example(846.0, 0)
def test_settles_below_what_memory_bears_where_each_request_costs_some(request_mib: float, seed: int) -> None:
    """By what requests cost it stops before the trouble: it never goes critical, and does not try again and again."""
    sim = Simulated(
        LimitState.starting(16), saturating(100.0, 16), 0.02, total_mib=8192, others_mib=lambda now_s: 1000.0, request_mib=request_mib,
        dice=random.Random(seed),
    ).go(600)  # fmt: skip
    assert sim.least_mib > 0.02 * 8192 or request_mib > 1400, "four at the start are too many then"
    assert sim.changes(300, 600) <= 20, sim.whys[-20:]
    fit = max(1.0, min(16.0, (8192 - 2000 - 0.05 * 8192) / request_mib))
    settled = sim.between(300, 600)
    assert sum(settled) / len(settled) >= 0.5 * fit


@dataclass
class Growing(Simulated):
    """Requests that grow to `request_mib` within `grows_for_s`, and hold it until their end: nobody takes them back."""

    grows_for_s: float = 4.0
    lasts_s: tuple[float, float] = (5.0, 8.0)
    _requests: list[tuple[float, float]] = field(default_factory=list)  # from when until when

    def _hold(self, limit: int) -> int:
        self._requests = [(from_s, until_s) for from_s, until_s in self._requests if until_s > self.now_s]
        while len(self._requests) < limit:
            self._requests.append((self.now_s, self.now_s + self.dice.uniform(*self.lasts_s)))
        self._held_mib = sum(self.request_mib * min(1.0, (self.now_s - from_s) / self.grows_for_s) for from_s, _ in self._requests)
        return len(self._requests)


@SIMULATED
@given(st.floats(1, 8), st.floats(40, 190), st.integers(0, 100))
@example(8.0, 190.0, 0)
@example(8.0, 150.0, 0)
def test_a_raise_waits_for_requests_that_still_grow(grows_for_s: float, request_mib: float, seed: int) -> None:
    """Tokens come long before a request holds all that it will hold."""
    sim = Growing(
        LimitState.starting(16), saturating(100.0, 16), 0.02, total_mib=2560, others_mib=lambda now_s: 600.0, request_mib=request_mib,
        grows_for_s=grows_for_s, lasts_s=(grows_for_s + 1, 2 * grows_for_s), dice=random.Random(seed),
    ).go(300)  # fmt: skip
    assert sim.least_mib > 0.02 * 2560, sim.whys
    fit = max(1.0, min(16.0, (2560 - 1600 - 0.05 * 2560) / request_mib))
    settled = sim.between(150, 300)
    assert sum(settled) / len(settled) >= 0.5 * fit, sim.whys


def hog(from_s: float, until_s: float, amount: float, otherwise: float) -> Callable[[float], float]:
    return lambda now_s: amount if from_s <= now_s < until_s else otherwise


@SIMULATED
@given(st.sampled_from([2, 4, 8, 16]), st.floats(0.45, 1.0), st.floats(61, 64))
def test_follows_a_cpu_hog_down_within_3_s_and_back_up_within_30(bound: int, share: float, from_s: float) -> None:
    sim = Simulated(LimitState.starting(bound), saturating(80.0, bound), others_cpu=hog(from_s, from_s + 40, share, 0.05)).go(140)
    before = sim.between(from_s - 2, from_s)[-1]
    assert before == bound
    during = sim.between(from_s + 3, from_s + 40)
    assert max(during) <= max(1, bound * (1 - share)) + 1e-9 and min(during) == max(during), "it settles where the hog leaves it"
    assert sim.between(from_s + 70, from_s + 71)[0] == before


@SIMULATED
@given(st.sampled_from([2, 4, 8, 16]), st.floats(13_900, 14_700), st.floats(61, 64))
def test_follows_a_memory_hog_down_within_3_s_and_back_up_within_30(bound: int, mib: float, from_s: float) -> None:
    sim = Simulated(LimitState.starting(bound), saturating(80.0, bound), others_mib=hog(from_s, from_s + 40, mib, 4000)).go(140)
    if mib > 14_600:
        assert max(sim.between(from_s + 3, from_s + 40)) <= max(1, bound // 2)
    assert sim.between(from_s + 70, from_s + 71)[0] == bound


def test_a_hog_that_comes_and_goes_makes_few_changes() -> None:
    sim = Simulated(LimitState.starting(8), saturating(80.0, 8), others_cpu=lambda now_s: 0.6 if now_s % 20 < 10 else 0.1).go(600)
    assert sim.changes(120, 600) <= 60


@SIMULATED
@given(st.floats(0.2, 0.6), st.floats(0, 0.1), st.integers(0, 100))
def test_noise_around_a_threshold_does_not_flap(level: float, noise: float, seed: int) -> None:
    dice = random.Random(seed)
    sim = Simulated(LimitState.starting(8), saturating(80.0, 8), others_cpu=lambda now_s: level + noise * dice.uniform(-1, 1)).go(600)
    assert sim.changes(120, 600) <= 60


# each reason


def test_short_memory_halves_step_by_step_and_critical_memory_goes_to_one_at_once() -> None:
    short = run(at(16), [Sample(t * EACH_S, 16, (machine(0.04, 8),)) for t in range(20)])
    assert limits(short)[::4] == [8, 4, 2, 1, 1]
    assert limits(run(at(16), [Sample(0, 16, (machine(0.019, 8),))])) == [1]
    assert limits(run(short[0].state, [Sample(0.5, 16, (machine(0.019, 8),))])) == [1]


def test_memory_that_falls_fast_is_cut_before_it_is_short() -> None:
    slow = [Sample(t, 16, (machine(0.14 - 0.005 * t, 8),)) for t in range(10)]
    assert set(limits(run(at(16), slow))) == {16}
    fast = [Sample(t, 16, (machine(0.20 - 0.07 * t, 8),)) for t in range(2)]
    assert (run(at(16), fast)[-1].why or "").endswith("of memory are available in the machine, and 573 MiB less each second")


def test_the_tightest_place_counts() -> None:
    roomy, tight = machine(0.5), machine(0.03, 1.0, "cgroup /pod")
    why = run(at(8), [Sample(0, 8, (roomy, tight), 3 * GIB)])[-1].why
    assert why == "limit 8 → 4: 31 MiB of 1.0 GiB of memory are available in cgroup /pod, less than 51 MiB; the model holds 3.0 GiB"


def test_a_big_machine_keeps_two_gib_and_no_more() -> None:
    assert limits(run(at(8), [Sample(0, 8, (machine(0.01, 512),))])) == [8]
    assert limits(run(at(8), [Sample(0, 8, (machine(0.003, 512),))])) == [4]


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (lambda t: Sample(t, 8, memory_stall_share=0.3), "stand still for want of memory 30 % of the time"),
        (lambda t: Sample(t, 8, gpus=(Gpu("GPU 1", GIB, 80 * GIB, 20 * GIB),)), "1.0 GiB of 80.0 GiB are free on GPU 1"),
        (lambda t: Sample(20 * t, 8, gpus=(Gpu("GPU 0", GIB, 80 * GIB, GIB, 1.0, 91, "heat"),)), "GPU 0 slows itself down at 91 °C: heat"),
        (lambda t: Sample(t, 8, others_cpu_share=0.5), "other programs use 50 % of the CPU"),
        (lambda t: Sample(t, 8, others_cpu_share=0.5, cpu_wait_share=0.2), "other programs use 50 % of the CPU"),
    ],
)
def test_each_reason_is_said(sample: Callable[[float], Sample], words: str) -> None:
    first, second = run(at(8), [sample(0.0), sample(0.6)])
    decisive = first if first.why else second
    assert words in (decisive.why or "") and decisive.limit in (4, 6)


@pytest.mark.parametrize(
    "sample",
    [
        lambda t: Sample(t, 8, others_cpu_share=0.9, cpu_wait_share=0.01),  # a machine of many cores: nobody waits
        lambda t: Sample(t, 0, others_cpu_share=0.9),  # nothing of ours runs
        lambda t: Sample(t, 8, cpu_wait_share=1.0),  # the model's own threads
        lambda t: Sample(t, 8, gpus=(Gpu("GPU 0", GIB, 80 * GIB, GIB, 1.0),)),  # its model server took nearly all at its start
        lambda t: Sample(t, 8, others_cpu_share=0.9 if t == 5 else 0.1),  # one sample
        lambda t: Sample(t, 8),
    ],
)
def test_what_is_no_reason(sample: Callable[[float], Sample]) -> None:
    assert set(limits(run(at(8, bound=8), [sample(t) for t in range(60)]))) == {8}


def test_the_model_comes_and_goes() -> None:
    assert LimitState.starting(16).limit == 4 and LimitState.starting(2).limit == 2 and LimitState.starting(0).limit == 1
    half = at(12).with_bound(8)
    assert half.limit == 8 and half.goal == 12
    back = half.with_bound(16)
    assert limits(run(back, [Sample(t * EACH_S, 0) for t in range(40)]))[-1] == 12
    assert LimitState(limit=2, bound=4).with_bound(8).limit == 2


def test_thresholds_are_settings() -> None:
    careful = Thresholds(memory_reserve=0.2)
    sample = Sample(0, 8, (machine(0.15, 8),))
    assert next_limit(sample, at(8)).limit == 8 and next_limit(sample, at(8), careful).limit == 4
    never, state = Thresholds(others_cpu=1.0, memory_stall=1.0), at(8)
    for t in range(9):
        state = next_limit(Sample(t, 8, memory_stall_share=1.0, others_cpu_share=1.0, cpu_wait_share=1.0), state, never).state
    assert state.limit >= 8
