"""Looking after the subscription, on a client whose broker does as it is told."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import pulsar
import pytest

import config
from messaging import consumer as module
from messaging import line as line_module
from messaging.consumer import Consumer, Notice, Subscribed
from messaging.handshake import QueueTrouble
from messaging.line import Received
from tests.real.processes import wait_until


class Identifier:
    """Of a message: its entry's number, its place in a batch and the batch's size."""

    def __init__(self, entry: int, index: int = -1, size: int = 0) -> None:
        self._entry, self._index, self._size = entry, index, size

    def partition(self) -> int:
        return -1

    def ledger_id(self) -> int:
        return 1

    def entry_id(self) -> int:
        return self._entry

    def batch_index(self) -> int:
        return self._index

    def serialize(self) -> bytes:
        return bytes([6 << 3, self._size])


class Message:
    def __init__(self, identifier: Identifier) -> None:
        self._identifier = identifier

    def message_id(self) -> Identifier:
        return self._identifier

    def data(self) -> bytes:
        return b"{}"

    def properties(self) -> dict[str, str]:
        return {}

    def publish_timestamp(self) -> int:
        return 0


class FakeConsumer:
    """`prefetched`: what it will give; `failing`: what a look at it raises; `acknowledged`: entries."""

    def __init__(self) -> None:
        self.prefetched: deque[Message] = deque()
        self.failing: Exception | None = None
        self.acknowledged: list[int] = []
        self.closed = False

    def receive(self, timeout_ms: int) -> Message:
        if not self.prefetched:
            time.sleep(0.005)
            raise pulsar.Timeout
        return self.prefetched.popleft()

    def get_last_message_id(self) -> None:
        if self.failing:
            raise self.failing

    def acknowledge(self, identifier: Identifier) -> None:
        self.acknowledged.append(identifier.entry_id())

    def close(self) -> None:
        self.closed = True


class FakeClient:
    def __init__(self, broker: Scene) -> None:
        self._broker = broker

    def subscribe(self, *_: Any, **__: Any) -> FakeConsumer:
        if self._broker.refusing:
            raise self._broker.refusing
        self._broker.consumers.append(FakeConsumer())
        return self._broker.consumers[-1]

    def close(self) -> None:
        self._broker.closed_clients += 1


class Scene:
    """The broker, a consumer of it, and what it told. `trouble`: what a look by hand finds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "open_client", lambda settings: FakeClient(self))
        monkeypatch.setattr(module, "find_trouble", lambda settings: self.trouble)
        self.consumers: list[FakeConsumer] = []
        self.closed_clients = 0
        self.trouble: QueueTrouble | None = None
        self.refusing: Exception | None = None
        self.told: list[Notice] = []
        settings = config.load({"PULSAR_URL": "pulsar://127.0.0.1:1", "MODEL_NAME": "m"})
        self.consumer = Consumer(settings, self.told.append, lambda: None)

    def start(self) -> None:
        self.consumer.start()
        self.until(lambda: self.told and self.told[-1] == Subscribed(), "subscription")

    def until(self, check: Any, what: str) -> None:
        wait_until(check, within_s=5, what=what, every_s=0.005)

    def receive(self, count: int, room: int = 10) -> list[Received]:
        self.consumer.allow(room)
        taken: list[Received] = []

        def came() -> bool:
            taken.extend(self.consumer.take())
            return len(taken) == count

        self.until(came, f"{count} messages")
        return taken

    def until_lines(self, count: int) -> None:
        self.until(lambda: len(self.consumers) == count, f"{count} subscriptions")


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    for name, value in {"TICK_S": 0.005, "RETRY_EACH_S": 0.02, "LOOK_AFTER_S": 0.05, "ANSWERS_WITHIN_S": 0.02}.items():
        monkeypatch.setattr(module, name, value)
    for name, value in {"WAIT_S": 0.01, "AFTER_FAILURE_S": 0.01}.items():
        monkeypatch.setattr(line_module, name, value)
    found = Scene(monkeypatch)
    yield found
    found.consumer.stop_receiving()


def message(entry: int, index: int = -1, size: int = 0) -> Message:
    return Message(Identifier(entry, index, size))


def test_trouble_is_told_once_each_way(scene: Scene) -> None:
    assert scene.consumer.trouble() == "not subscribed yet"
    scene.start()
    assert scene.consumer.trouble() == ""
    scene.consumer.allow(5)
    scene.consumers[0].failing = pulsar.Timeout()
    scene.trouble = QueueTrouble("away")
    scene.until(lambda: scene.consumer.trouble() == "away", "trouble")
    time.sleep(0.1)  # several more looks
    scene.trouble = None
    scene.until(lambda: scene.consumer.trouble() == "", "recovery")
    assert scene.told == [Subscribed(), QueueTrouble("away"), Subscribed()]


def test_a_refusal_in_the_middle_is_told_and_not_as_final(scene: Scene) -> None:
    scene.start()
    scene.consumer.allow(5)
    scene.consumers[0].failing = pulsar.Timeout()
    for trouble in (QueueTrouble("away"), QueueTrouble("token", refused=True)):
        scene.trouble = trouble
        scene.until(lambda told=trouble: scene.consumer.trouble() == told.message, "trouble")
    assert scene.told == [Subscribed(), QueueTrouble("away"), QueueTrouble("token")]


def test_a_subscription_that_does_not_answer_is_opened_anew(scene: Scene) -> None:
    scene.start()
    scene.consumer.allow(5)
    scene.consumers[0].failing = pulsar.Timeout()
    scene.until_lines(2)
    scene.until(lambda: scene.consumers[0].closed, "end of the old one, of which nothing is open")
    assert scene.closed_clients == 0, "the first client is for others too"
    scene.consumers[1].prefetched.append(message(1))
    assert [received.key[2] for received in scene.receive(1)] == [1]


def test_an_old_consumer_is_closed_only_when_nothing_of_it_runs(scene: Scene) -> None:
    scene.start()
    scene.consumers[0].prefetched.extend([message(1), message(2)])
    first, second = scene.receive(2)
    scene.consumers[0].failing = pulsar.Timeout()
    scene.until_lines(2)
    scene.consumers[0].prefetched.append(message(3))
    (third,) = scene.receive(1)
    for received in (first, second):
        scene.consumer.acknowledge(received)
    time.sleep(0.1)  # many of its turns
    assert not scene.consumers[0].closed, "the third came by it too"
    scene.consumer.acknowledge(third)
    scene.until(lambda: scene.consumers[0].closed, "end of the old one")
    assert scene.consumers[1].acknowledged == [1, 2, 3], "by the newest: the old connection may be the broken one"


def test_what_comes_again_by_the_new_consumer_is_the_new_ones(scene: Scene) -> None:
    scene.start()
    scene.consumers[0].prefetched.append(message(1))
    scene.receive(1)
    scene.consumers[0].failing = pulsar.Timeout()
    scene.until_lines(2)
    scene.consumers[1].prefetched.append(message(1))
    scene.receive(1)
    scene.until(lambda: scene.consumers[0].closed, "end of the old one")


def test_a_batch_is_received_whole_whatever_is_allowed(scene: Scene) -> None:
    scene.start()
    scene.consumers[0].prefetched.extend(message(1, index, 5) for index in range(5))
    scene.consumers[0].prefetched.append(message(2))
    assert len(scene.receive(5, room=1)) == 5
    time.sleep(0.05)
    assert scene.consumer.take() == []
    scene.receive(1)


def entries(received: list[Received]) -> list[int]:
    return [each.key[2] for each in received]


def flowing(scene: Scene) -> deque[Message]:
    """What the client holds. It has given one, and the thread that received it waits for room."""
    scene.start()
    held = scene.consumers[0].prefetched
    held.append(message(1))
    scene.receive(1, room=1)
    time.sleep(0.05)
    return held


def test_what_the_client_holds_already_comes_at_once_to_who_has_room(scene: Scene) -> None:
    held = flowing(scene)
    held.extend([message(2), message(3), message(4)])
    for expected in ([2], [3], [4]):
        assert scene.consumer.allow(1)
        assert entries(scene.consumer.take()) == expected
    assert not scene.consumer.allow(0)


def test_what_has_arrived_counts_before_more_is_taken(scene: Scene) -> None:
    scene.start()
    held = scene.consumers[0].prefetched
    held.append(message(1))
    scene.consumer.allow(1)
    scene.until(lambda: not held, "the first")
    time.sleep(0.05)
    held.append(message(2))
    assert scene.consumer.allow(1)
    assert entries(scene.consumer.take()) == [1], "it fills the room"


def test_a_batch_whose_first_was_taken_by_who_has_room_is_received_whole(scene: Scene) -> None:
    held = flowing(scene)
    held.append(message(2, 0, 3))
    assert scene.consumer.allow(1)
    assert entries(scene.consumer.take()) == [2]
    assert not scene.consumer.allow(1), "its rest is nobody else's"
    held.extend([message(2, 1, 3), message(2, 2, 3), message(3)])
    scene.until(lambda: len(held) == 1, "the rest of the batch")
    scene.consumer.allow(0)
    assert entries(scene.consumer.take()) == [2, 2]
    assert len(held) == 1


def test_a_batch_is_received_whole_though_it_is_stopped_in_its_middle(scene: Scene) -> None:
    held = flowing(scene)
    held.extend(message(2, index, 3) for index in range(3))
    assert scene.consumer.allow(1)
    scene.consumer.stop_receiving()
    scene.until(lambda: not held, "the rest of the batch")
    assert entries(scene.consumer.take()) == [2, 2, 2]
    scene.until(scene.consumer.has_stopped, "its end")


def test_who_has_room_waits_for_nothing_and_what_comes_later_is_received_all_the_same(scene: Scene) -> None:
    held = flowing(scene)
    assert not scene.consumer.allow(1), "nothing was there"
    held.append(message(2))
    scene.until(lambda: entries(scene.consumer.take()) == [2], "what came later")


def test_a_batch_that_was_cut_off_in_its_middle_keeps_no_old_consumer_open(scene: Scene) -> None:
    scene.start()
    scene.consumers[0].prefetched.extend(message(1, index, 5) for index in range(3))
    received = scene.receive(3)
    scene.consumers[0].failing = pulsar.Timeout()
    scene.until_lines(2)
    for each in received:
        scene.consumer.acknowledge(each)
    scene.until(lambda: scene.consumers[0].closed, "end of the old one")


def test_after_long_silence_it_is_opened_anew_and_then_more_rarely(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_LATEST_S", 0.3)
    monkeypatch.setattr(module, "RENEW_AFTER_S", 0.1)
    scene.start()
    scene.consumer.allow(5)
    began_s = time.monotonic()
    scene.until_lines(4)
    assert time.monotonic() - began_s > 0.1 + 0.2 + 0.3 - 0.1
    scene.until(lambda: [each.closed for each in scene.consumers] == [True, True, True, False], "end of the old ones")
    assert scene.closed_clients == 2, "each but the first"
    assert scene.told == [Subscribed()], "nobody needs to hear of it"


def test_nothing_is_looked_at_while_nothing_may_be_received(scene: Scene) -> None:
    scene.start()
    scene.consumers[0].failing = pulsar.Timeout()
    time.sleep(0.15)
    assert len(scene.consumers) == 1


def test_old_consumers_do_not_pile_up(scene: Scene) -> None:
    """With something open on each, no more than MOST_LINES; the newest is left to its client."""
    scene.start()
    for number in range(module.MOST_LINES):
        scene.until_lines(number + 1)
        scene.consumers[number].prefetched.append(message(number))
        scene.receive(1)
        scene.consumers[number].failing = pulsar.Timeout()
    scene.until(lambda: "not the subscription" in scene.consumer.trouble(), "trouble")
    assert len(scene.consumers) == module.MOST_LINES
    scene.consumers[-1].failing = None
    scene.until(lambda: scene.consumer.trouble() == "", "recovery")


def test_a_partitioned_topic_cannot_be_asked(scene: Scene) -> None:
    scene.start()
    scene.consumers[0].failing = pulsar.OperationNotSupported()
    scene.consumer.allow(5)
    time.sleep(0.15)
    assert len(scene.consumers) == 1


def test_stopping_while_there_is_no_pulsar_ends_at_once(scene: Scene) -> None:
    scene.trouble = QueueTrouble("away")
    scene.consumer.start()
    scene.until(lambda: scene.told, "notice")
    scene.consumer.stop_receiving()
    assert scene.consumer.has_stopped()
    scene.until(lambda: not scene.consumer._thread.is_alive(), "end of its thread")
