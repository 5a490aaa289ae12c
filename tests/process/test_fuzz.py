"""Upstreams that send anything at all, before a real child: no request is lost, and nothing but OpenAI's JSON is delivered."""

from __future__ import annotations

import pytest

from tests.fuzz.answers import case
from tests.fuzz.run import Fuzzed

ANSWERS = 1500
SEED = 20


@pytest.mark.timeout(240)  # 8 s where nothing else runs
def test_no_answer_of_an_upstream_loses_a_request() -> None:
    """`python -m tests.fuzz` asks for as many as are wanted; a number found here is replayed by its `--only`."""
    with Fuzzed(SEED) as fuzzed:
        result = fuzzed.ask(range(ANSWERS))
    assert result.wrong == [], f"seed {SEED}: {result.wrong[:5]}"
    assert result.answers == ANSWERS
    assert {"answered", "failed", "retry", "throttle", "trouble"} <= result.ends.keys()


def test_a_case_is_the_same_again() -> None:
    assert [case(7, number) for number in range(200)] == [case(7, number) for number in range(200)]
    assert case(7, 1) != case(8, 1)
