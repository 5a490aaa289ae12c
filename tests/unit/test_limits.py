"""The limit over time: within its bounds, no flapping, and a reason for each change."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterable

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limits.controller import Decision, LimitState, next_limit
from limits.sampling import Sample, Sampler

GIB = 2**30


def sample(
    at_s: float, *, available_share: float | None = 0.5, others: float | None = 0.0, in_flight: int = 1000, total_gib: float = 16.0
) -> Sample:
    total = None if available_share is None else int(total_gib * GIB)
    available = None if available_share is None else int(available_share * total_gib * GIB)
    return Sample(at_s, in_flight, available, total, None, others)


def run(state: LimitState, samples: Iterable[Sample]) -> list[Decision]:
    decisions = []
    for each in samples:
        decisions.append(next_limit(each, state))
        state = decisions[-1].state
    return decisions


def limits(decisions: list[Decision]) -> list[int]:
    return [decision.limit for decision in decisions]


Step = tuple[float, float | None, float | None, int, float]  # seconds on, available share, others, in flight, GiB
SAMPLES = st.lists(
    st.tuples(
        st.floats(0, 30),
        st.none() | st.floats(0, 1),
        st.none() | st.floats(0, 1),
        st.integers(0, 200),
        st.floats(0.1, 4096),
    ),
    max_size=80,
)


@given(st.integers(-1, 200), SAMPLES)
def test_never_out_of_bounds_and_a_reason_for_each_change(bound: int, steps: list[Step]) -> None:
    state, now = LimitState.starting(bound), 0.0
    for step_s, available, others, in_flight, total in steps:
        now += step_s
        decision = next_limit(sample(now, available_share=available, others=others, in_flight=in_flight, total_gib=total), state)
        assert 1 <= decision.limit <= max(1, bound) and decision.state.limit == decision.limit
        assert (decision.why is None) == (decision.limit == state.limit)
        if decision.why:
            assert f"limit {state.limit} → {decision.limit}: " in decision.why and "\n" not in decision.why
        state = decision.state


@given(st.integers(1, 64), st.none() | st.floats(0, 1), st.none() | st.floats(0, 1), st.integers(0, 64))
def test_constant_samples_change_the_limit_one_way_only_until_it_settles(
    bound: int, available: float | None, others: float | None, in_flight: int
) -> None:
    samples = [sample(t, available_share=available, others=others, in_flight=in_flight) for t in range(1500)]
    found = limits(run(LimitState.starting(bound), samples))
    assert found == sorted(found, reverse=True), "from the bound it can only go down"
    assert len(set(found[-600:])) == 1


@given(st.integers(1, 16), SAMPLES)
def test_recovers_to_the_bound_from_whatever_happened(bound: int, steps: list[Step]) -> None:
    state, now = LimitState.starting(bound), 0.0
    for step_s, available, others, in_flight, total in steps:
        now += step_s
        state = next_limit(sample(now, available_share=available, others=others, in_flight=in_flight, total_gib=total), state).state
    found = limits(run(state, [sample(now + t) for t in range(1, 400)]))
    assert found[-1] == bound and found == sorted(found)


def test_short_memory_halves_step_by_step_and_critical_memory_goes_to_one_at_once() -> None:
    short = run(LimitState.starting(16), [sample(t, available_share=0.04) for t in range(21)])
    assert limits(short)[::5] == [8, 4, 2, 1, 1]
    assert limits(run(LimitState.starting(16), [sample(0, available_share=0.01)])) == [1]
    assert limits(run(short[0].state, [sample(1, available_share=0.01)])) == [1]


def test_the_reason_has_the_readings() -> None:
    reading = Sample(5.0, 8, 310 * 2**20, int(23.4 * GIB), 3 * GIB, 0.1)
    assert next_limit(reading, LimitState.starting(8)).why == (
        "limit 8 → 1: 310 MiB of memory available, below 2 % of 23.4 GiB; the model holds 3.0 GiB"
    )
    big = Sample(5.0, 8, int(1.5 * GIB), 512 * GIB, None, None)
    assert next_limit(big, LimitState.starting(8)).why == "limit 8 → 4: 1.5 GiB of memory available, below 2.0 GiB"


def test_a_short_burst_of_others_cpu_use_changes_nothing_a_long_one_takes_one_after_the_other() -> None:
    burst = [sample(t, others=0.9 if t < 8 else 0.1) for t in range(60)]
    assert set(limits(run(LimitState.starting(8), burst))) == {8}
    busy = run(LimitState.starting(8), [sample(t, others=0.9) for t in range(31)])
    assert limits(busy)[::10] == [8, 7, 6, 5]
    assert "other programs use 90 % of the CPU" in (busy[10].why or "")


def test_an_unused_limit_is_not_raised() -> None:
    cut = run(LimitState.starting(8), [sample(0, available_share=0.04)])[-1].state
    assert set(limits(run(cut, [sample(t, in_flight=2) for t in range(1, 100)]))) == {4}
    assert limits(run(cut, [sample(t, in_flight=4) for t in range(1, 100)]))[-1] > 4


def test_without_any_source_the_limit_stays_at_its_bound() -> None:
    assert set(limits(run(LimitState.starting(8), [sample(t, available_share=None, others=None) for t in range(100)]))) == {8}


@pytest.mark.parametrize("bytes_per_request", [0.03, 0.06, 0.11])
def test_settles_where_each_request_costs_memory(bytes_per_request: float) -> None:
    """In a closed loop the limit that meets trouble is tried again once a minute, not at once."""
    state, found = LimitState.starting(16), []
    for t in range(1800):
        free = max(0.0, 0.6 - bytes_per_request * state.limit)
        state = next_limit(sample(t, available_share=free), state).state
        found.append(state.limit)
    settled = found[600:]
    changes = sum(a != b for a, b in itertools.pairwise(settled))
    assert changes <= 120 and sum(settled) / len(settled) >= 0.5 * min(16, 0.52 / bytes_per_request)


def test_another_bound_takes_along_what_was_not_cut() -> None:
    assert LimitState.starting(4).with_bound(8).limit == 8
    assert LimitState(limit=2, bound=4).with_bound(8).limit == 2
    assert LimitState.starting(8).with_bound(0).limit == 1


def burn(seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", f"import time\nend = time.time() + {seconds}\nwhile time.time() < end: pass"])


def cpu_used_s(process: psutil.Process) -> float:
    return float(sum(process.cpu_times()[:2]))


@pytest.mark.parametrize("ours", [True, False])
def test_the_sampler_tells_own_from_others_cpu_use(ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    process = burn(60)
    own = [process.pid] if ours else []
    try:
        burning, sampler = psutil.Process(process.pid), Sampler(print)
        assert sampler.sample(own, [], 3).others_cpu_share is None, "nothing to compare with yet"
        deadline = time.monotonic() + 20
        while cpu_used_s(burning) < 0.4:
            assert time.monotonic() < deadline
        before = psutil.cpu_times()
        # The machine as it would be with this process alone: 0.4 of 1 s busy more than at the first look.
        first = sampler._last_cpu
        assert first is not None
        idle = before._replace(**{name: 0.0 for name in before._fields})
        busy = idle._replace(user=first.busy_s + cpu_used_s(burning), idle=first.total_s - first.busy_s + 0.6)
        monkeypatch.setattr(psutil, "cpu_times", lambda: busy)
        found = sampler.sample(own, [], 3)
    finally:
        process.kill()
        process.wait()
    assert found.others_cpu_share is not None and found.in_flight == 3
    assert found.others_cpu_share < 0.1 if ours else found.others_cpu_share > 0.3


def test_the_sampler_measures_memory_and_drops_what_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    sampler = Sampler(said.append)
    ended = burn(0)
    ended.wait()
    first = sampler.sample([os.getpid(), ended.pid], [os.getpid(), ended.pid], 0)
    assert first.model_rss_bytes and first.total_memory_bytes and first.available_memory_bytes and not said

    def fail() -> None:
        raise OSError("no /proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", fail)
    second = sampler.sample([os.getpid()], [os.getpid()], 0)
    assert second.total_memory_bytes is None and second.model_rss_bytes
    sampler.sample([os.getpid()], [], 0)
    assert said == ["memory cannot be measured and does not count: no /proc/meminfo"]
    monkeypatch.undo()
    assert sampler.sample([os.getpid()], [], 0).total_memory_bytes and said[1:] == ["memory can be measured again"]


def test_a_sample_is_cheap() -> None:
    sampler, own = Sampler(print), [os.getpid()]
    sampler.sample(own, own, 0)
    began = time.process_time()
    for _ in range(50):
        sampler.sample(own, own, 0)
    assert (time.process_time() - began) / 50 < 0.01
