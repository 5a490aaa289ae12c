"""What the bench's figures and verdicts are made of."""

from __future__ import annotations

import math

import pytest

from bench import http11
from bench.mock import Asked, answer_to
from bench.stats import Row, Target, is_met, spread


def test_percentiles_are_values_that_were_seen() -> None:
    found = spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found.count, found.p(0), found.p(50), found.p(99), found.p(100)) == (5, 1.0, 3.0, 5.0, 5.0)


def test_nothing_measured_has_no_percentile_and_meets_no_target() -> None:
    assert math.isnan(spread([]).p(50))
    assert not is_met(Target(at_most=1.0), spread([]).p(50), None)


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
