"""What becomes of a request: no end without its record, no acknowledgement before the queue has confirmed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

import supervision.requests
from ipc.messages import Outcome, Refuse, Task
from messaging.redelivery import ATTEMPT, DEATHS, LAST_ERROR, PUBLISHED_MS, TRAIL
from supervision.journal import Journal
from supervision.ledger import Line
from supervision.requests import MOST_ALONE
from tests.unit.request_fakes import DEAD, ERROR, RECORDS, TOPIC, Clock, Queue, record_of


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(supervision.requests, "time", clock)
    return clock


@pytest.fixture
def queue(clock: Clock) -> Queue:
    return Queue(clock)


def test_an_answer_is_recorded_and_then_acknowledged(queue: Queue) -> None:
    received = queue.arrive()
    task = queue.board()
    assert isinstance(task, Task) and task.data == b'{"model":"m"}' and task.attempt == 1
    assert task.deadline_at_s == queue.clock.now_s + 300
    queue.requests.ended(Outcome(task.number, "answered", prompt_tokens=3))
    assert not queue.acknowledged and len(queue.requests.ledger) == 1
    (record,) = queue.confirm()
    assert record.topic == RECORDS and record_of(record)["outcome"] == "answered" and record_of(record)["attempt"] == 1
    assert queue.keys() == [received.key] and len(queue.requests.ledger) == 0
    queue.requests.ended(Outcome(task.number, "answered"))  # said twice
    assert not queue.unconfirmed


def test_all_publishes_are_confirmed_before_the_acknowledgement(queue: Queue) -> None:
    queue.arrive()
    queue.requests.ended(Outcome(queue.board().number, "undeliverable", ERROR, answer=b'{"choices":[]}'))
    (dead, first), (record, second) = queue.unconfirmed
    assert (dead.topic, record.topic) == (DEAD, RECORDS)
    assert dead.properties["workernode-answer"] == '{"choices":[]}' and dead.properties[LAST_ERROR] == "broke"
    assert dead.subscription and dead.payload == queue.message().payload
    second()
    assert not queue.acknowledged
    first()
    assert len(queue.acknowledged) == 1
    second()
    assert len(queue.acknowledged) == 1


def test_retries_to_the_end_of_the_attempts(queue: Queue) -> None:
    received = queue.arrive()
    for attempt in (2, 3):
        assert queue.requests.ended(Outcome(queue.board().number, "retry", ERROR)) is None
        (copy,) = queue.confirm()
        assert copy.topic == TOPIC and copy.payload == received.payload and copy.delay_s > 0 and not copy.batched
        assert copy.properties[ATTEMPT] == str(attempt) and copy.properties[LAST_ERROR] == "broke"
        assert copy.properties[PUBLISHED_MS] == str(received.published_ms)
        queue.requests.arrive(queue.again(copy))
    queue.requests.ended(Outcome(queue.board().number, "retry", ERROR))
    refusal = queue.board(2)
    assert isinstance(refusal, Refuse) and refusal.error == ERROR and refusal.attempt == 3
    queue.requests.ended(Outcome(refusal.number, "failed", ERROR))
    dead, record = queue.confirm()
    assert dead.topic == DEAD and dead.properties[ATTEMPT] == "3"
    assert record_of(record)["outcome"] == "failed" and record_of(record)["attempt"] == 3
    assert len(queue.acknowledged) == 3 and len(queue.requests.ledger) == 0


def test_a_retry_waits_as_long_as_the_upstream_asked(queue: Queue) -> None:
    queue.arrive()
    queue.requests.ended(Outcome(queue.board().number, "retry", ERROR, wait_s=20))
    assert queue.unconfirmed[0][0].delay_s == 20


def test_throttling_counts_no_attempt_and_ends_in_time(queue: Queue) -> None:
    queue.arrive()
    pushback = queue.requests.ended(Outcome(queue.board().number, "throttle", ERROR, None, 20.0))
    assert pushback is not None and (pushback.wait_s, pushback.reason, pushback.error["message"]) == (20, None, "broke")
    (copy,) = queue.confirm()
    assert copy.delay_s == 20 and copy.properties[ATTEMPT] == "1"
    queue.clock.now_s += 295
    queue.requests.arrive(queue.again(copy))
    queue.requests.ended(Outcome(queue.board().number, "throttle", ERROR, None, 60.0))
    (copy,) = queue.confirm()
    assert copy.delay_s == 5  # its requester waits for the refusal then


@pytest.mark.parametrize("mode", ["hold", "answer"])
def test_trouble(clock: Clock, mode: str) -> None:
    queue = Queue(clock, ON_TROUBLE=mode)
    queue.arrive()
    pushback = queue.requests.ended(Outcome(queue.board().number, "trouble", ERROR, "AuthenticationError"))
    assert pushback is not None and pushback.reason == "AuthenticationError"
    if mode == "hold":
        (copy,) = queue.confirm()
        assert copy.topic == TOPIC and copy.properties[ATTEMPT] == "1" and len(queue.acknowledged) == 1
        return
    refusal = queue.board()
    assert isinstance(refusal, Refuse) and refusal.error == ERROR
    queue.requests.ended(Outcome(refusal.number, "failed", ERROR))
    assert [publish.topic for publish in queue.confirm()] == [RECORDS]


def test_a_redelivery_of_what_is_held_is_acknowledged_by_its_newest_delivery(queue: Queue) -> None:
    old = queue.arrive()
    task = queue.board()
    new = replace(old)
    queue.requests.arrive(new)
    assert queue.next_for_child() is None and not queue.acknowledged
    queue.requests.ended(Outcome(task.number, "answered"))
    queue.confirm()
    assert queue.acknowledged == [new] and queue.acknowledged[0] is new
    queue.requests.arrive(old)
    assert len(queue.acknowledged) == 2 and len(queue.requests.ledger) == 0


def test_a_request_published_twice_is_computed_once(queue: Queue) -> None:
    first = queue.arrive()
    task = queue.board()
    second = queue.arrive()
    assert first.key != second.key
    assert queue.next_for_child() is None and queue.requests.ledger.in_hand() == 1
    queue.requests.ended(Outcome(task.number, "answered"))
    third = queue.arrive()
    assert len(queue.confirm()) == 1
    assert queue.keys() == [first.key, second.key, third.key]
    fourth = queue.arrive()
    assert queue.keys()[3:] == [fourth.key] and len(queue.requests.ledger) == 0


def test_the_attempts_of_what_was_published_twice_do_not_add_up(queue: Queue) -> None:
    queue.arrive()
    number = queue.board().number
    queue.arrive(properties={ATTEMPT: "2"})
    queue.requests.ended(Outcome(number, "retry", ERROR))
    (copy,) = queue.confirm()
    assert copy.properties[ATTEMPT] == "3" and len(queue.acknowledged) == 2


def test_a_copy_may_arrive_before_its_publish_is_confirmed(queue: Queue) -> None:
    queue.arrive()
    queue.requests.ended(Outcome(queue.board().number, "retry", ERROR))
    copy = queue.again(queue.unconfirmed[0][0])
    queue.requests.arrive(copy)
    task = queue.board()
    queue.confirm()
    queue.requests.ended(Outcome(task.number, "answered"))
    (record,) = queue.confirm()
    assert record_of(record)["attempt"] == 2 and queue.keys()[-1] == copy.key and len(queue.requests.ledger) == 0


def test_a_dead_childs_requests(queue: Queue) -> None:
    for request_id in ("untouched", "begun", "computed"):
        queue.arrive(request_id=request_id, stream=True)
    tasks = [queue.board(7) for _ in range(3)]
    queue.requests.begun(tasks[1].number)
    queue.requests.computed(tasks[2].number)
    queue.requests.child_died(7, "signal SIGKILL", blame=True, others=False)
    again = queue.confirm()
    assert [publish.properties[ATTEMPT] for publish in again] == ["2", "2"]
    assert "SIGKILL" in again[0].properties[LAST_ERROR]
    refusal = queue.board(8)
    assert isinstance(refusal, Refuse) and refusal.request_id == "begun" and refusal.error["code"] == "node_child_died"
    for child in (8, 9, 10):  # it survives any number of deaths
        queue.requests.child_died(child, "x", blame=True)
        assert queue.board(child + 1) == refusal
    queue.requests.begun(refusal.number)
    queue.requests.child_died(11, "x", blame=True)
    assert queue.board(12) == refusal
    queue.requests.ended(Outcome(refusal.number, "failed", refusal.error))
    assert [publish.topic for publish in queue.confirm()] == [RECORDS]
    assert len(queue.requests.ledger) == 0


def test_a_child_that_is_ended_on_purpose_costs_no_attempt(queue: Queue) -> None:
    queue.arrive()
    queue.board(7)
    queue.requests.child_died(7, "drained", blame=False)
    (copy,) = queue.confirm()
    assert (copy.properties[ATTEMPT], copy.delay_s) == ("1", 0)


def test_what_a_child_says_of_what_it_has_no_more_is_ignored(queue: Queue) -> None:
    queue.arrive()
    number = queue.board(7).number
    queue.requests.child_died(7, "x", blame=True)
    queue.requests.ended(Outcome(number, "answered"))
    queue.requests.begun(number)
    queue.requests.computed(number)
    queue.requests.ended(Outcome(99, "answered"))
    assert queue.confirm() == [] and queue.board(8).number == number


def test_where_others_are_left_the_first_death_costs_no_second_wait_in_the_queue(queue: Queue) -> None:
    for request_id in ("first", "second", "later"):
        queue.arrive(request_id=request_id)
    for _ in range(2):
        queue.board(7)
    queue.requests.child_died(7, "signal SIGKILL", blame=True)
    assert queue.confirm() == []
    again = [queue.board(8) for _ in range(3)]
    assert [(task.request_id, task.attempt) for task in again] == [("first", 2), ("second", 2), ("later", 1)]
    queue.requests.ended(Outcome(again[0].number, "answered"))
    (record,) = queue.confirm()
    assert record_of(record)["attempt"] == 2
    queue.requests.child_died(8, "signal SIGKILL", blame=True)  # the second time its count goes into the queue with it
    copies = {queue.again(publish).properties[ATTEMPT] for publish in queue.confirm() if publish.topic == TOPIC}
    assert copies == {"3"} and queue.board(9).request_id == "later"


def test_what_waits_for_another_child_goes_back_with_its_count(queue: Queue) -> None:
    queue.arrive()
    queue.board(7)
    queue.requests.child_died(7, "signal SIGKILL", blame=True)
    assert queue.requests.give_back_waiting() == 1
    (copy,) = queue.confirm()
    assert (copy.properties[ATTEMPT], copy.properties[DEATHS]) == ("2", "1")


def test_an_expired_request_is_refused(queue: Queue) -> None:
    queue.arrive(properties={PUBLISHED_MS: str(int((queue.clock.now_s - 301) * 1000)), LAST_ERROR: "the last word"})
    refusal = queue.board()
    assert isinstance(refusal, Refuse) and refusal.error["code"] == "request_expired" and "the last word" in refusal.error["message"]
    assert refusal.deadline_at_s == queue.clock.now_s + 10
    queue.requests.ended(Outcome(refusal.number, "failed", refusal.error))
    assert [publish.topic for publish in queue.confirm()] == [DEAD, RECORDS]


def test_what_expires_while_it_waits_is_refused_too(queue: Queue) -> None:
    queue.arrive()
    queue.clock.now_s += 301
    assert isinstance(queue.board(), Refuse)


def test_a_retry_that_would_come_too_late_is_refused_at_once(queue: Queue) -> None:
    queue.arrive()
    number = queue.board().number
    queue.clock.now_s += 299.9
    queue.requests.ended(Outcome(number, "retry", ERROR))
    assert not queue.unconfirmed and isinstance(queue.board(), Refuse)


def test_a_publisher_whose_clock_is_ahead_gets_no_longer_time(queue: Queue) -> None:
    received = queue.message()
    queue.requests.arrive(replace(received, published_ms=received.published_ms + 3_600_000))
    assert queue.board().deadline_at_s == queue.clock.now_s + 300


def test_refusals_go_first(queue: Queue) -> None:
    queue.arrive(request_id="waits")
    queue.arrive(request_id="late", properties={PUBLISHED_MS: "1"})
    assert queue.board().request_id == "late"


def test_a_refusal_that_cannot_be_delivered(queue: Queue) -> None:
    queue.arrive(properties={PUBLISHED_MS: "1"})
    refusal = queue.board()
    queue.requests.ended(Outcome(refusal.number, "undeliverable", ERROR, answer=b'{"error":{}}'))
    dead, record = queue.confirm()
    assert "was not computed" in dead.properties[LAST_ERROR] and "workernode-answer" not in dead.properties
    assert record_of(record)["outcome"] == "undeliverable" and len(queue.acknowledged) == 1


@pytest.mark.parametrize("payload", [b"", b"hello", b"[]", b"\xff", b"[" * 100_000, b'{"request_id":7}'])
def test_what_is_no_request_becomes_a_dead_letter(queue: Queue, payload: bytes) -> None:
    received = queue.arrive(payload=payload)
    assert queue.next_for_child() is None
    (dead,) = queue.confirm()
    assert (dead.topic, dead.payload) == (DEAD, payload) and dead.properties[LAST_ERROR]
    assert queue.keys() == [received.key] and len(queue.requests.ledger) == 0


def test_an_unreadable_request_is_answered_where_its_endpoint_can_be_read(queue: Queue) -> None:
    queue.arrive(payload=b'{"request_id":"r","endpoint":"ws://h/res/ws","data":[]}')
    refusal = queue.board()
    assert isinstance(refusal, Refuse) and refusal.stream and refusal.error["code"] == "invalid_message"
    queue.requests.ended(Outcome(refusal.number, "failed", refusal.error))
    assert [publish.topic for publish in queue.confirm()] == [DEAD, RECORDS]


def test_an_unreadable_request_with_no_more_than_its_id_is_recorded(queue: Queue) -> None:
    queue.arrive(payload=b'{"request_id":"r"}')
    dead, record = queue.confirm()
    assert dead.topic == DEAD and record_of(record)["outcome"] == "undeliverable" and len(queue.acknowledged) == 1


def test_what_waits_is_given_back_but_refusals_stay(queue: Queue) -> None:
    for request_id in ("a", "b"):
        queue.arrive(request_id=request_id)
    queue.arrive(request_id="late", properties={PUBLISHED_MS: "1"})
    running = queue.board(1)
    assert queue.requests.give_back_waiting() == 2
    assert [publish.properties[ATTEMPT] for publish in queue.confirm()] == ["1", "1"]
    assert [entry.request_id for entry in queue.requests.ledger.aboard(1)] == [running.request_id] == ["late"]


# deaths


def test_only_what_was_aboard_is_blamed_and_the_third_time_it_runs_alone(queue: Queue) -> None:
    queue.arrive(request_id="suspect")
    queue.arrive(request_id="bystander")
    for deaths in (1, 2):
        queue.board(deaths)
        queue.requests.child_died(deaths, "signal SIGSEGV", blame=True, others=False)
        (copy,) = queue.confirm()
        assert copy.properties[DEATHS] == str(deaths) and "SIGSEGV" in copy.properties[TRAIL]
        again = queue.again(copy)
        queue.requests.give_back_waiting()  # the bystander goes uncounted
        assert DEATHS not in queue.confirm()[0].properties
        queue.requests.arrive(again)
        queue.arrive(request_id=f"bystander {deaths}")
    alone = queue.requests.next_for_child(Line.ALONE)
    assert alone is not None and alone.request_id == "suspect"
    queue.requests.board(alone, 9)
    assert queue.requests.ledger.is_quarantined(9)
    queue.requests.child_died(9, "signal SIGSEGV", blame=True)
    assert not queue.requests.ledger.is_quarantined(9)
    refusal = queue.requests.next_for_child(Line.REFUSAL)
    assert refusal is not None and refusal.job.dead_letter and len(refusal.job.history.trail) == 3


def test_those_that_run_alone_take_turns(queue: Queue) -> None:
    for n in range(MOST_ALONE + 3):
        queue.arrive(request_id=f"suspect {n}", properties={DEATHS: "2"})
    queue.arrive(request_id="good")
    assert [publish.delay_s > 0 for publish in queue.confirm()] == [True] * 3
    assert queue.requests.ledger.in_hand() == 1, "and keep nobody else waiting"
    task = queue.requests.next_for_child(Line.TASK)
    assert task is not None and task.request_id == "good"


def test_a_busy_request_waits_for_its_other_attempt_uncounted(queue: Queue) -> None:
    queue.arrive()
    assert queue.requests.ended(Outcome(queue.board().number, "busy", ERROR)) is None
    (copy,) = queue.confirm()
    assert copy.topic == TOPIC and copy.properties[ATTEMPT] == "1" and copy.delay_s > 0


@pytest.mark.parametrize(
    ("offered", "link"),
    [({"link": "ws://h:1/res/link", "v": 1}, "ws://h:1/res/link"), ({"link": "ws://h:1/x", "v": 2}, ""), ({"link": "http://h", "v": 1}, ""),
     ({"link": 7, "v": 1}, ""), ("x", ""), (None, ""), ({"link": "ws://h:x", "v": 1}, "")],
)  # fmt: skip
def test_the_link_that_is_offered(queue: Queue, offered: object, link: str) -> None:
    body = {"request_id": "r", "stream": False, "endpoint": "http://h/res", "data": {}, "metadata": {"workernode": offered}}
    queue.arrive(payload=msgspec.json.encode(body))
    assert queue.board().link == link


# the death of the whole node


def died(queue: Queue, folder: Path) -> Queue:
    """Another node on the same queue, with the first one's journal."""
    left = (folder / "journal-0").read_text()
    after = folder / f"after-{len(left)}"
    after.mkdir()
    (after / "journal-0").write_text(left)
    second = Queue(queue.clock, journal=Journal(after))
    second._last_entry = queue._last_entry
    return second


def test_a_node_that_died_whole_counts_an_attempt_for_what_it_had(clock: Clock, tmp_path: Path) -> None:
    first = Queue(clock, journal=Journal(tmp_path))
    aboard, waiting, ended = (first.arrive(request_id=name) for name in ("aboard", "waiting", "ended"))
    first.board()
    entry = first.requests.ledger.waiting()[-1]
    first.requests.ended(Outcome(first.requests.board(entry, 2).number, "answered"))
    second = died(first, tmp_path)
    for received in (aboard, waiting, ended):
        second.requests.arrive(replace(received))
    assert second.confirm() == []
    assert {(task.request_id, task.attempt) for task in (second.board() for _ in range(3))} == {("aboard", 2), ("waiting", 1), ("ended", 1)}
    history = second.requests.ledger.aboard(1)[0].job.history
    assert history.deaths == 1 and "whole node" in history.last_error


def test_a_request_that_kills_whole_nodes_is_given_up(clock: Clock, tmp_path: Path) -> None:
    queue = Queue(clock, journal=Journal(tmp_path))
    received, folder = queue.arrive(), tmp_path
    queue.board()
    queue = died(queue, folder)
    folder = next(folder.glob("after-*"))
    queue.requests.arrive(replace(received))  # the first time it stays
    assert queue.board().attempt == 2
    queue = died(queue, folder)
    folder = next(folder.glob("after-*"))
    queue.requests.arrive(replace(received))
    (copy,) = queue.confirm()
    received = queue.again(copy)
    queue.requests.arrive(received)
    assert queue.board().attempt == 3
    queue = died(queue, folder)
    queue.requests.arrive(replace(received))
    refusal = queue.board()
    assert isinstance(refusal, Refuse) and refusal.error["code"] == "node_child_died"


def test_a_stream_that_had_begun_when_the_node_died_is_ended_not_repeated(clock: Clock, tmp_path: Path) -> None:
    first = Queue(clock, journal=Journal(tmp_path))
    received = first.arrive(stream=True)
    first.requests.begun(first.board().number)
    second = died(first, tmp_path)
    second.requests.arrive(replace(received))
    assert isinstance(second.board(), Refuse)
