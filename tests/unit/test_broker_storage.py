"""Storage: what is committed is there after a restart, numbers are never used again, and the file does not grow for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.storage import Storage, StorageUnusable
from broker.subscriptions import Consumer, Entry, Subscription
from broker.topics import Topic, Topics
from broker.writer import Append, Barrier


class Opened:
    """Topics on a storage; what the writer's thread has to tell is run by `settle`."""

    def __init__(self, folder: Path) -> None:
        self._calls: list[Callable[[], None]] = []
        self.storage = Storage(folder, self._calls.append)
        self.topics = Topics(self.storage, lambda _: None)

    def settle(self) -> None:
        """Until all that was submitted is committed and told."""
        committed = threading.Event()
        self.storage.submit(Barrier(lambda _: committed.set()))
        while not committed.is_set():
            while self._calls:
                self._calls.pop(0)()
            committed.wait(0.001)

    def publish(self, topic: Topic, count: int, *, size: int = 100) -> list[int]:
        numbers: list[int] = []

        def finish(append: Append, stored: bool) -> None:
            assert stored
            numbers.append(append.number)

        for _ in range(count):
            topic.append(1, 0, 1_000, bytes(size), finish)
        self.settle()
        return numbers

    def subscribe(self, topic: Topic, name: str = "s", *, earliest: bool = True) -> Subscription:
        attached = self.topics.subscribe(topic, name, earliest=earliest, told=lambda stored: None)
        self.settle()
        return attached.subscription

    def flush(self, topic: Topic) -> None:
        self.topics.acked(topic)
        self.topics.flush()
        self.settle()

    def close(self) -> None:
        self.storage.close()


@pytest.fixture
def open_storage(tmp_path: Path) -> Iterator[Callable[[], Opened]]:
    """Opens the same folder again and again."""
    opened: list[Opened] = []

    def again() -> Opened:
        for earlier in opened:
            earlier.close()
        opened[:] = [Opened(tmp_path)]
        return opened[0]

    yield again
    for last in opened:
        last.close()


Again = Callable[[], Opened]


class Reader:
    writable = True

    def __init__(self) -> None:
        self.got: list[int] = []

    def deliver(self, consumer: Consumer, entry: Entry, redelivery_count: int, remaining: int | None) -> None:
        self.got.append(entry.number)


def waiting(subscription: Subscription) -> list[int]:
    """What a new consumer gets."""
    reader = Reader()
    consumer = Consumer(0, "c", reader, 1_000_000)
    subscription.add(consumer, shared=True)
    subscription.dispatch(2_000)
    subscription.remove(consumer)
    return reader.got


def found(opened: Opened, name: str = "persistent://public/default/t") -> Topic:
    topic = opened.topics.find(name)
    assert topic is not None
    return topic


def topic_of(opened: Opened) -> Topic:
    return opened.topics.get_or_create("persistent://public/default/t")


def test_what_was_published_and_acknowledged_is_there_after_a_restart(open_storage: Again) -> None:
    opened = open_storage()
    topic = topic_of(opened)
    subscription = opened.subscribe(topic)
    assert opened.publish(topic, 10) == list(range(10))
    for number in (0, 1, 4, 5, 8):
        subscription.ack(number)
    subscription.ack(9, 0b101)
    opened.flush(topic)
    again = found(open_storage())
    assert again.topic_id == topic.topic_id and again.last_entry == 9
    restored = again.attached["s"].subscription
    assert waiting(restored) == [2, 3, 6, 7, 9]
    assert restored.backlog == 5 and restored.cursor.remaining(9) == 0b101


def test_numbers_and_ids_are_never_used_again(open_storage: Again) -> None:
    opened = open_storage()
    topic = topic_of(opened)
    subscription = opened.subscribe(topic)
    opened.publish(topic, 5)
    subscription.ack_up_to(4)
    opened.flush(topic)
    opened = open_storage()
    assert opened.publish(found(opened), 2) == [5, 6]
    found(opened).attached["s"].subscription.ack(6)  # the last, out of order
    opened.flush(found(opened))
    opened = open_storage()
    assert opened.publish(found(opened), 1) == [7]
    opened.topics.unsubscribe(found(opened), found(opened).attached["s"], lambda stored: None)
    opened.topics.forget_unused(0.0)
    opened.topics.forget_unused(1000.0)
    opened.settle()
    assert opened.topics.names() == []
    assert topic_of(opened).topic_id == topic.topic_id + 1
    assert open_storage().topics.get_or_create("persistent://public/default/u").topic_id > topic.topic_id + 1


def test_generated_names_differ_between_starts(open_storage: Again) -> None:
    assert open_storage().topics.generate_name() != open_storage().topics.generate_name()


def test_an_entry_is_deleted_once_all_subscriptions_have_acknowledged_it(open_storage: Again) -> None:
    opened = open_storage()
    topic = topic_of(opened)
    first, second = opened.subscribe(topic, "first"), opened.subscribe(topic, "second")
    opened.publish(topic, 6)

    def there() -> list[int]:
        opened.flush(topic)
        return [entry.number for entry in opened.storage.read(topic.topic_id, 0, 99, 99, 10**9)]

    for number in (0, 1, 4):
        first.ack(number)
    assert there() == [0, 1, 2, 3, 4, 5]
    for number in (0, 4, 5):
        second.ack(number)
    assert there() == [1, 2, 3, 5], "4 too, though 1 is still needed"
    opened.topics.unsubscribe(topic, topic.attached["first"], lambda stored: None)
    second.ack_up_to(2)
    assert there() == [3, 5], "5 was held by the one that has left"
    second.ack(3)
    assert there() == [], "and goes with what is before it"


def test_a_new_subscription_gets_what_is_left(open_storage: Again) -> None:
    opened = open_storage()
    topic = topic_of(opened)
    first = opened.subscribe(topic, "first")
    opened.publish(topic, 5)
    for number in (0, 3):
        first.ack(number)
    opened.flush(topic)
    assert waiting(opened.subscribe(topic, "late")) == [1, 2, 4]
    assert waiting(opened.subscribe(topic, "latest", earliest=False)) == []


def test_the_file_does_not_grow_with_what_went_through(open_storage: Again, tmp_path: Path) -> None:
    opened = open_storage()
    topic = topic_of(opened)
    subscription = opened.subscribe(topic)
    sizes = []
    for _ in range(12):
        last = opened.publish(topic, 1000, size=1024)[-1]
        subscription.ack_up_to(last)
        opened.flush(topic)
        sizes.append(files_bytes(tmp_path))
    assert max(sizes[6:]) <= 1.2 * max(sizes[:6]), sizes
    assert (tmp_path / "broker.sqlite").stat().st_size < 6_000_000


def test_a_large_backlog_that_is_gone_is_given_back_to_the_file_system(
    open_storage: Again, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.writer.IDLE_S", 0.01)
    opened = open_storage()
    topic = topic_of(opened)
    subscription = opened.subscribe(topic)
    for _ in range(10):
        last = opened.publish(topic, 4000, size=1024)[-1]
    assert files_bytes(tmp_path) > 40_000_000
    subscription.ack_up_to(last)
    opened.flush(topic)
    deadline_s = time.monotonic() + 20
    while files_bytes(tmp_path) > 20_000_000:
        assert time.monotonic() < deadline_s, f"still {files_bytes(tmp_path):,} bytes"
        time.sleep(0.05)


def files_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def test_a_hundred_thousand_messages_are_recovered_in_no_time(open_storage: Again) -> None:
    opened = open_storage()
    topic = topic_of(opened)
    opened.subscribe(topic)
    for _ in range(20):
        opened.publish(topic, 5000)
    started_s = time.monotonic()
    again = open_storage()
    assert time.monotonic() - started_s < 1.0
    assert found(again).attached["s"].subscription.backlog == 100_000


def test_a_folder_is_one_brokers(open_storage: Again, tmp_path: Path) -> None:
    open_storage()
    with pytest.raises(StorageUnusable, match="in use by another broker"):
        Storage(tmp_path, lambda call: call())


def test_a_folder_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageUnusable, match="cannot be used"):
        Storage(tmp_path / "file", lambda call: call())


def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "broker.sqlite").write_bytes(b"something else entirely " * 100)
    with pytest.raises(StorageUnusable, match="cannot be used"):
        Storage(tmp_path, lambda call: call())


def test_what_cannot_be_stored_is_not_confirmed_and_its_number_is_free(open_storage: Again) -> None:
    opened = open_storage()
    topic = topic_of(opened)
    opened.publish(topic, 1)
    told: list[bool] = []

    class Failing(Barrier):
        def apply(self, writing: object) -> None:
            raise OSError("no space left on device")

    opened.storage.submit(Failing(told.append))
    opened.settle()
    assert told == [False]
    assert opened.publish(topic, 1) == [1]
