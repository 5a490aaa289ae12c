"""What the bench's figures and verdicts are made of."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bench import http11, results
from bench.mock import Asked, answer_to
from bench.stats import Row, Target, is_met, spread, steady_rate
from bench.table import Table


def test_percentiles_are_values_that_were_seen() -> None:
    found = spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found.count, found.p(0), found.p(50), found.p(99), found.p(100)) == (5, 1.0, 3.0, 5.0, 5.0)


def test_nothing_measured_has_no_percentile_and_meets_no_target() -> None:
    assert math.isnan(spread([]).p(50))
    assert not is_met(Target(at_most=1.0), Table("s", "b").row("w", "ms", spread([]).p(50)).measured, None)


def test_what_could_not_be_measured_survives_the_file(tmp_path: Path) -> None:
    row = Table("s", "b").row("w", "ms", math.nan, math.nan, Target(at_most=1.0))
    results.add(tmp_path / "rows", [row])
    assert results.read(tmp_path / "rows") == [row]
    assert "NOT MET" in results.line(row) and "NOT MET" in results.markdown([row])


def test_a_scenario_that_ran_again_replaces_its_rows(tmp_path: Path) -> None:
    first, other, again = (Table(name, "b").row("w", "ms", value) for name, value in (("s", 1.0), ("o", 2.0), ("s", 3.0)))
    for row in (first, other, again):
        results.add(tmp_path / "rows", [row])
    assert results.read(tmp_path / "rows") == [other, again]


def test_a_rate_does_not_count_half_a_wave() -> None:
    waves = [0.1 * wave for wave in range(5) for _ in range(10)]  # ten at once, each 100 ms
    assert steady_rate(waves[3:], wave=10) == pytest.approx(100)
    assert steady_rate(waves[:10], wave=10) is None


@pytest.mark.parametrize(
    ("target", "measured", "floor", "met"),
    [
        (Target(at_most=1.0), 1.0, None, True),
        (Target(at_most=1.0), 1.1, None, False),
        (Target(at_least=98), 97.9, None, False),
        (Target(at_most=1.0, of_floor=1.3), 0.9, 0.7, True),
        (Target(at_most=1.0, of_floor=1.3), 0.9, 0.6, False),  # each part has to hold
        (Target(at_most=1.0, of_floor=1.3), 1.1, 2.0, False),
        (Target(of_floor=1.3), 0.9, None, False),
    ],
)
def test_a_target_is_met_where_all_of_it_holds(target: Target, measured: float, floor: float | None, met: bool) -> None:
    assert is_met(target, measured, floor) is met
    assert Row("s", "b", "w", "u", measured, floor, target).verdict == ("met" if met else "NOT MET")


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_messages_are_cut_out_of_whatever_pieces_they_come_in(step: int) -> None:
    requests, reader = http11.post("/a", "h", b"one") + http11.post("/b", "h", b"x" * 3000), http11.RequestReader()
    found = [body for start in range(0, len(requests), step) for _, body in reader.feed(requests[start : start + step])]
    assert found == [b"one", b"x" * 3000]


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_a_streams_payload_is_put_together_again(step: int) -> None:
    stream = b"".join(answer_to(Asked(model="mock?tokens=3", stream=True)).pieces)
    reader = http11.ResponseReader()
    payload = b"".join(reader.feed(stream[start : start + step]) for start in range(0, len(stream), step))
    assert (reader.status, reader.is_complete) == (200, True)
    assert [word for word in (b'"t0"', b'" t1"', b'" t2"', b"[DONE]") if word in payload] == [b'"t0"', b'" t1"', b'" t2"', b"[DONE]"]
