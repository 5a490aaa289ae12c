"""A short storm over a whole system on either broker; `python -m tests.chaos` runs a long one."""

from __future__ import annotations

import shutil

import pytest

from tests.chaos import report
from tests.chaos.checker import LOST, RECORDED_TWICE, TWICE, UNRECORDED, WRONG, check
from tests.chaos.ledger import TOKENS, Asked, Attempt, Final, Incident, Way
from tests.chaos.run import Options, run
from tests.chaos.schedule import BROKER, KINDS, schedule
from tests.real.brokers import Broker

SEED = 18  # nine kinds of events in so short a time, deaths of a supervisor, a gateway and the broker among them
STORM_S = 30.0


@pytest.mark.timeout(400)
def test_each_request_of_a_storm_has_one_answer_and_a_record(own_pulsar: Broker) -> None:
    options = Options(SEED, STORM_S, broker_every_s=18.0, rate=16.0, ttl_s=60.0)
    result, folder = run(options, own_pulsar)
    print(report.details(result))
    assert result.passed, f"{report.verdict(result)}\nevents and logs: {folder}"
    shutil.rmtree(folder, ignore_errors=True)


# the checker itself: it has to see what it is there for


def asked(way: Way = "direct", *attempts: Attempt, final: Final = "result", stream: bool = True) -> Asked:
    one = Asked("chaos-0", way, stream, at_s=100.0, gateway=0, request_id="id", sent_s=100.1, ended_s=109.0, final=final)
    one.attempts += attempts
    return one


def attempt(node: str, first_s: float, last: int = TOKENS - 1) -> Attempt:
    return Attempt(node, first_s, first_s + 1, last)


def kinds(one: Asked, *incidents: Incident, recorded: bool = True) -> tuple[set[str], set[str]]:
    """What is found of it: bad, and known."""
    record = {"request_id": "id", "record_id": "r", "attempt": 1, "outcome": "answered"}
    record |= {"tokens_source": "none", "usage": {"total_tokens": 0}}
    found = check([one], list(incidents), {"chaos-0": [record]} if recorded else {})
    return set(found.bad), set(found.known)


KILLED_A = Incident("kill", "A", 103.0, 110.0)
KILLED_BROKER = Incident("kill", "broker", 100.5, 115.0)


@pytest.mark.parametrize(
    ("one", "incidents", "bad", "known"),
    [
        (asked("direct", attempt("A", 101)), [], set(), set()),
        (asked("direct", final="error"), [], {"errors while nothing was killed"}, set()),
        (asked("direct", final="error"), [KILLED_A], set(), set()),
        (asked("gateway", attempt("A", 101, 3)), [], {WRONG}, set()),
        (asked("direct", attempt("A", 101, 3), attempt("B", 105)), [], {TWICE}, set()),
        (asked("direct", attempt("A", 101, 3), attempt("B", 105)), [KILLED_A], set(), {"replayed after a node's death"}),
        (asked("direct", attempt("B", 101, 3), attempt("A", 105)), [KILLED_A], {TWICE}, set()),
        (asked("gateway", attempt("A", 101, 3), attempt("B", 105)), [KILLED_A], {TWICE}, set()),
        (asked("direct", attempt("A", 101), attempt("B", 101)), [KILLED_A], {TWICE}, set()),
        (asked("direct", attempt("A", 101), attempt("B", 101)), [KILLED_BROKER], set(), {"played by two nodes after the broker's death"}),
        (asked("gateway", attempt("A", 101), attempt("B", 101)), [KILLED_BROKER], {TWICE}, set()),
        (asked("gateway", final="broken"), [KILLED_A], {LOST}, set()),
        (asked("gateway", final="broken"), [Incident("kill", "gateway 0", 103.0, 110.0)], set(), set()),
    ],
)
def test_the_checker_tells_broken_promises_from_known_limits(one: Asked, incidents: list[Incident], bad: set[str], known: set[str]) -> None:
    assert kinds(one, *incidents) == (bad, known)


def test_the_checker_misses_answers_and_records() -> None:
    open_one = asked("direct")
    open_one.final = None
    assert kinds(open_one)[0] == {LOST}
    assert kinds(asked("direct", attempt("A", 101)), recorded=False)[0] == {UNRECORDED}


def test_the_checker_adds_up_what_a_consumer_would() -> None:
    """Each record_id once; one that two requests share is noticed."""
    one, other = asked("direct", attempt("A", 101)), asked("direct", attempt("A", 101))
    other.tag = "chaos-1"
    record = {"request_id": "id", "record_id": "r", "attempt": 1, "outcome": "answered", "tokens_source": "reported"}
    twice = [record | {"usage": {"total_tokens": 5}}, record | {"usage": {"total_tokens": 7}}]
    found = check([one], [], {"chaos-0": twice})
    assert (found.tokens, found.record_ids, found.records, set(found.bad)) == ({"reported": 5}, {"r"}, 2, set())
    shared = check([one, other], [], {"chaos-0": twice, "chaos-1": twice})
    assert set(shared.bad) == {RECORDED_TWICE} and "another request's" in shared.bad[RECORDED_TWICE][0]


def test_words_out_of_their_turn_are_noticed() -> None:
    one = asked("direct")
    one.said("t0 t1")
    one.said(" t1")
    assert one.faults == ["word 1 of node A out of its turn"]


def test_a_seed_is_a_storm() -> None:
    assert schedule(7, 600, 60) == schedule(7, 600, 60) != schedule(8, 600, 60)
    assert {event.kind for event in schedule(7, 600, 60)} == {*KINDS, BROKER}
