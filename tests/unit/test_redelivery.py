"""When a request is tried again, and the history that it carries along."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.redelivery import (
    ATTEMPT,
    FIRST_DELAY_S,
    LAST_ERROR,
    LONGEST_DELAY_S,
    PUBLISHED_MS,
    History,
    delay_s,
    expired,
    merged,
    next_attempt,
    noted,
    read_history,
    write_history,
)  # fmt: skip


@given(st.integers(1, 10**6), st.integers(1, 10**14), st.text(max_size=500))
def test_a_history_survives_its_journey(attempt: int, published_ms: int, error: str) -> None:
    history = History(attempt, published_ms, error)
    assert read_history(write_history(history), published_ms + 1) == history


def test_a_new_message_has_none() -> None:
    assert read_history({}, 1000) == History(1, 1000, "")
    assert len(write_history(History(1, 1, "e" * 10_000))[LAST_ERROR]) == 500


@pytest.mark.parametrize("odd", ["", "x", "-1", "0", "1.5", "²", "٣", "9" * 5000, " 1"])
def test_odd_properties_count_as_new(odd: str) -> None:
    assert read_history({ATTEMPT: odd, PUBLISHED_MS: odd}, 1000) == History(1, 1000)


def test_a_time_ahead_of_the_publish_is_not_believed() -> None:
    assert read_history({PUBLISHED_MS: "99999999999999"}, 1000).published_ms == 1000
    assert read_history({PUBLISHED_MS: "500"}, 1000).published_ms == 500


@given(st.dictionaries(st.sampled_from([ATTEMPT, PUBLISHED_MS, LAST_ERROR, "x"]), st.text()), st.integers(0, 10**14))
def test_any_properties_can_be_read(properties: dict[str, str], published_ms: int) -> None:
    history = read_history(properties, published_ms)
    assert history.attempt >= 1 and 0 <= history.published_ms <= published_ms
    delay_s(history, random.Random(1))


def test_two_messages_of_one_request() -> None:
    first, copy = History(1, 1000), History(2, 2000, "e")
    assert merged(first, copy) == merged(copy, first) == History(2, 1000, "e")


def test_attempts_are_counted_to_their_end() -> None:
    history = History(1, 1000)
    tried = [history]
    while (following := next_attempt(tried[-1], 3)) is not None:
        tried.append(following)
    assert [each.attempt for each in tried] == [1, 2, 3]
    assert next_attempt(History(1, 1), 1) is None
    assert next_attempt(History(500, 1), 3) is None


def test_the_trail_says_what_each_attempt_ended_with() -> None:
    history = noted(noted(History(1, 1000), "first\nline", "a"), "second" * 100, "b")
    assert history.trail[0] == "attempt 1, a: first line" and len(history.trail[1]) == 200
    assert history.last_error == "second" * 100
    assert read_history(write_history(history), 1000).trail == history.trail
    for n in range(30):
        history = noted(history, str(n), "a")
    assert len(history.trail) == 10 and history.trail[-1].endswith(": 29")


def test_what_was_aboard_twice_runs_alone() -> None:
    for deaths, alone in ((0, False), (1, False), (2, True), (5, True)):
        history = read_history(write_history(History(1, 1000, deaths=deaths)), 1000)
        assert (history.deaths, history.runs_alone) == (deaths, alone)
    assert merged(History(1, 1000, deaths=2), History(2, 1000)).deaths == 2


def test_delays_grow_and_spread() -> None:
    dice = random.Random(1)
    for attempt, longest_s in ((2, 1), (3, 2), (4, 4), (6, 16), (7, 30), (10**15, 30)):
        delays = [delay_s(History(attempt, 1), dice) for _ in range(200)]
        assert longest_s / 2 <= min(delays) < 0.6 * longest_s and 0.9 * longest_s < max(delays) <= longest_s
    assert (FIRST_DELAY_S, LONGEST_DELAY_S) == (1, 30)


def test_expiry() -> None:
    assert not expired(History(1, 1000), 1000 + 5000, 5)
    assert expired(History(1, 1000), 1000 + 5001, 5)
    assert not expired(History(1, 9000), 1000, 5)  # a publisher whose clock is ahead
