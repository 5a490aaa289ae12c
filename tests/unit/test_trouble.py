"""The node's troubles: begun, looked at again, over; each said once."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from loguru import logger

import config
from errors import error_object
from ipc.messages import Probe, Probed
from reporting.eventbody import Reason
from supervision.trouble import (
    LONGEST_RECHECK,
    PROBED_WITHIN_S,
    QUEUE_AWAY_S,
    SPELL_OVER_AFTER_S,
    START_WITHIN_S,
    QueueTroubles,
    Spell,
    UpstreamTrouble,
)

REFUSED = error_object("Incorrect API key provided.", "invalid_request_error", "invalid_api_key")
AWAY = error_object("The upstream refused the connection.", "server_error", "upstream_refused")
SETTINGS = config.load({"NODE_TYPE": "remote", "MODEL_NAME": "m", "API_URL": "http://up.example", "PULSAR_URL": "pulsar://h:1"})
CHILD = 7
RECHECK_S = SETTINGS.recheck_s
LONGEST_RECHECK_S = LONGEST_RECHECK * RECHECK_S


class Told:
    """What was reported."""

    def __init__(self) -> None:
        self.warnings: list[tuple[str, str]] = []
        self.notes: list[tuple[str, str]] = []

    def warn(self, reason: Reason, message: str) -> None:
        self.warnings.append((reason, message))

    def note(self, reason: Reason, message: str) -> None:
        self.notes.append((reason, message))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What was logged."""
    found: list[str] = []
    number = logger.add(lambda line: found.append(line.rstrip("\n")), format="{message}")
    yield found
    logger.remove(number)


def trouble(told: Told, *, checks_start: bool = False) -> UpstreamTrouble:
    return UpstreamTrouble(SETTINGS, told, random.Random(1), 0.0, checks_start=checks_start)  # type: ignore[arg-type]


def next_probe_s(of: UpstreamTrouble, from_s: float) -> float:
    """When the next probe is due, to a second."""
    return next(float(now_s) for now_s in range(int(from_s), int(from_s) + 10_000) if of.probe_due(now_s, [CHILD]))


def test_nothing_is_probed_while_all_is_well(told: Told) -> None:
    assert trouble(told).probe_due(1e6, [CHILD]) is None


def test_a_trouble_is_reported_once_however_often_it_is_met(told: Told) -> None:
    well = trouble(told)
    for now_s in range(100):
        well.meet("AuthenticationError", REFUSED, now_s)
    ((reason, message),) = told.warnings
    assert reason == "AuthenticationError" and "Incorrect API key" in message and "API_KEY" in message and "http://up.example" in message
    assert well.error == REFUSED and well.is_hopeless and "Incorrect API key" in well.word


def test_probes_come_slower_and_slower_until_one_gets_through(told: Told) -> None:
    of = trouble(told)
    of.meet("APIQuotaExceededError", REFUSED, 0.0)
    now_s, pauses = 0.0, []
    for _ in range(6):
        due_s = next_probe_s(of, now_s)
        pauses.append(due_s - now_s)
        of.asked(CHILD, due_s)
        assert of.probe_due(due_s, [CHILD]) is None, "one at a time"
        of.heard(Probed(REFUSED, "APIQuotaExceededError"), due_s)
        now_s = due_s
    assert 0.7 * RECHECK_S <= pauses[0] <= 1.3 * RECHECK_S + 1 and pauses[-1] >= 0.7 * LONGEST_RECHECK_S
    assert max(pauses) <= 1.3 * LONGEST_RECHECK_S + 1 and not of.is_hopeless
    of.heard(Probed(), now_s)
    assert of.error is None and not of.word and len(told.notes) == 1
    assert len(told.warnings) == 7 and len(set(told.warnings)) == 1, "each look reports the same"
    of.meet("APIQuotaExceededError", REFUSED, now_s)
    assert len(told.warnings) == 8


def test_an_upstream_that_says_when_is_not_asked_before(told: Told) -> None:
    of = trouble(told)
    of.meet("APIQuotaExceededError", REFUSED, 0.0, wait_s=5000.0)
    assert next_probe_s(of, 0.0) >= 3700


def test_a_doubt_is_settled_by_a_probe(told: Told) -> None:
    of = trouble(told)
    of.doubt(5.0)
    assert of.probe_due(5.0, [CHILD]) == Probe(asks=True) and of.error is None
    of.asked(CHILD, 5.0)
    of.heard(Probed(), 6.0)
    assert not told.warnings and of.probe_due(1e6, [CHILD]) is None, "it was the request's own"
    of.doubt(7.0)
    of.asked(CHILD, 7.0)
    of.heard(Probed(REFUSED, "AuthenticationError"), 8.0)
    assert of.is_hopeless and len(told.warnings) == 1


def test_a_doubt_that_the_probe_cannot_settle_stays(told: Told) -> None:
    of = trouble(told)
    of.doubt(5.0)
    of.asked(CHILD, 5.0)
    of.heard(Probed(AWAY), 6.0)
    assert of.error is None and next_probe_s(of, 6.0) > 6.0


@pytest.mark.parametrize("children", [[], [CHILD + 1]])
def test_a_probe_is_lost_with_its_child(told: Told, children: list[int]) -> None:
    of = trouble(told)
    of.doubt(0.0)
    of.asked(CHILD, 0.0)
    assert of.probe_due(1.0, [CHILD]) is None
    assert of.probe_due(1.0, children) == Probe(asks=True)


def test_a_probe_without_an_answer_is_given_up(told: Told) -> None:
    of = trouble(told)
    of.doubt(0.0)
    of.asked(CHILD, 0.0)
    assert of.probe_due(PROBED_WITHIN_S + 1, [CHILD]) == Probe(asks=True)


def test_at_start_the_upstream_is_only_connected_to(told: Told) -> None:
    of = trouble(told, checks_start=True)
    assert of.is_starting and of.word and of.probe_due(0.0, [CHILD]) == Probe(asks=False)
    of.asked(CHILD, 0.0)
    of.heard(Probed(), 0.1)
    assert not of.is_starting and not of.word and not told.warnings and not told.notes


def test_an_upstream_that_is_away_at_start_is_a_mistake_after_a_minute(told: Told) -> None:
    of = trouble(told, checks_start=True)
    now_s = 0.0
    while not told.warnings:
        now_s = next_probe_s(of, now_s)
        assert now_s < START_WITHIN_S + 10 and not of.is_hopeless
        of.asked(CHILD, now_s)
        of.heard(Probed(AWAY), now_s)
    assert now_s > START_WITHIN_S and of.is_hopeless
    ((reason, message),) = told.warnings
    assert reason == "ConfigurationError" and "refused the connection" in message and "API_URL" in message


def test_a_spell_is_said_at_its_begin_and_its_end(lines: list[str]) -> None:
    spell = Spell("it {message}", "over: {count} in {lasted_s} s")
    spell.look(0.0)
    for now_s in range(20):
        spell.meet("rains", float(now_s))
        spell.look(float(now_s))
    assert lines == ["it rains"]
    spell.look(19.0 + SPELL_OVER_AFTER_S)
    assert len(lines) == 1
    spell.look(19.1 + SPELL_OVER_AFTER_S)
    spell.look(90.0)
    assert lines == ["it rains", "over: 20 in 19 s"]


def test_pulsar_away_is_reported_once_it_lasts(told: Told) -> None:
    queue = QueueTroubles(told)  # type: ignore[arg-type]
    assert queue.word
    queue.over(0.0, "subscribed")
    assert not queue.word
    queue.meet("Pulsar is away", False, 10.0)
    queue.look(10.0 + QUEUE_AWAY_S)
    assert "away" in queue.word and not told.warnings
    queue.look(11.0 + QUEUE_AWAY_S)
    queue.look(500.0)
    assert [reason for reason, _ in told.warnings] == ["MessageQueueConnectionError"]
    queue.over(501.0, "subscribed")
    assert [reason for reason, _ in told.notes] == ["MessageQueueConnectionError"]
    queue.meet("short", False, 600.0)
    queue.over(601.0, "subscribed")
    assert len(told.warnings) == len(told.notes) == 1


def test_a_refused_token_is_reported_at_once(told: Told) -> None:
    queue = QueueTroubles(told)  # type: ignore[arg-type]
    queue.meet("Pulsar refuses the token: check PULSAR_TOKEN", True, 1.0)
    assert told.warnings == [("AuthenticationError", "Pulsar refuses the token: check PULSAR_TOKEN")]
