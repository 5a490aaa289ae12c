"""A subscription against a plain model of Pulsar's semantics, and the cases that the model does not decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.cursors import Cursor
from broker.subscriptions import MAX_UNACKED_MESSAGES, WINDOW_ENTRIES, Busy, Consumer, Entry, Subscription


@dataclass
class Log:
    """A topic's entries in memory. `reads`: how many entries were read from it."""

    entries: list[Entry] = field(default_factory=list)
    deleted: set[int] = field(default_factory=set)
    reads: int = 0

    @property
    def last_entry(self) -> int:
        return len(self.entries) - 1

    def publish(self, messages: int = 1, deliver_at_ms: int = 0) -> Entry:
        entry = Entry(len(self.entries), messages, deliver_at_ms, b"body")
        self.entries.append(entry)
        return entry

    def read(self, first: int, max_entries: int, max_bytes: int) -> list[Entry]:
        found = [entry for entry in self.entries[first:] if entry.number not in self.deleted][:max_entries]
        self.reads += len(found)
        return found

    def fetch(self, numbers: Sequence[int]) -> list[Entry]:
        return [self.entries[number] for number in sorted(numbers) if number not in self.deleted]


@dataclass
class Receiver:
    """What was delivered: entry, redelivery count, bits that remain."""

    got: list[tuple[int, int, int | None]] = field(default_factory=list)
    writable: bool = True

    def deliver(self, consumer: Consumer, entry: Entry, redelivery_count: int, remaining: int | None) -> None:
        self.got.append((entry.number, redelivery_count, remaining))

    def take(self) -> list[int]:
        numbers = [number for number, _, _ in self.got]
        self.got = []
        return numbers


class Stage:
    """A subscription of an empty topic, and a clock."""

    def __init__(self, *, shared: bool = True) -> None:
        self.log, self.shared, self.now_ms = Log(), shared, 1_000
        self.subscription = Subscription("s", Cursor(-1), self.log)

    def join(self, permits: int = 1000) -> tuple[Consumer, Receiver]:
        receiver = Receiver()
        consumer = Consumer(0, "c", receiver, permits)
        self.subscription.add(consumer, shared=self.shared)
        self.dispatch()
        return consumer, receiver

    def publish(self, count: int = 1, *, messages: int = 1, deliver_at_ms: int = 0) -> None:
        for _ in range(count):
            self.subscription.offer(self.log.publish(messages, deliver_at_ms))
        self.dispatch()

    def dispatch(self) -> int | None:
        return self.subscription.dispatch(self.now_ms)


def test_entries_go_round_robin_by_permits() -> None:
    stage = Stage()
    (_, first), (_, second), (_, third) = stage.join(), stage.join(permits=1), stage.join(permits=0)
    stage.publish(6)
    assert (first.take(), second.take(), third.take()) == ([0, 2, 3, 4, 5], [1], [])


def test_a_batch_goes_whole_and_permits_go_below_zero() -> None:
    stage = Stage()
    consumer, receiver = stage.join(permits=3)
    stage.publish(messages=20)
    stage.publish()
    assert receiver.take() == [0]
    assert consumer.permits == -17
    consumer.permits += 18
    stage.dispatch()
    assert receiver.take() == [1]


def test_what_a_leaver_held_goes_to_the_others_first_and_uncounted() -> None:
    stage = Stage()
    leaver, held = stage.join(permits=3)
    stage.publish(5)
    assert held.take() == [0, 1, 2]
    stage.subscription.ack(1)
    _, other = stage.join(permits=0)
    stage.subscription.remove(leaver)
    stage.subscription.consumers[0].permits = 10
    stage.dispatch()
    assert other.got == [(0, 0, None), (2, 0, None), (3, 0, None), (4, 0, None)]


def test_giving_back_counts_and_counts_end_with_the_last_consumer() -> None:
    stage = Stage()
    consumer, receiver = stage.join()
    stage.publish(2)
    for _ in range(2):
        stage.subscription.redeliver(consumer, [0])
        stage.dispatch()
    stage.subscription.redeliver(consumer, None)
    stage.dispatch()
    assert receiver.got[2:] == [(0, 1, None), (0, 2, None), (0, 3, None), (1, 1, None)]
    stage.subscription.remove(consumer)
    _, receiver = stage.join()
    assert receiver.got == [(0, 0, None), (1, 0, None)]


def test_giving_back_what_one_does_not_hold_means_nothing() -> None:
    stage = Stage()
    (first, _), (_, second) = stage.join(permits=1), stage.join(permits=1)
    stage.publish(2)
    stage.subscription.redeliver(first, [1, 77])
    stage.dispatch()
    assert second.take() == [1]


def test_a_second_consumer_beside_an_exclusive_one_is_refused() -> None:
    stage = Stage(shared=False)
    stage.join()
    with pytest.raises(Busy, match="already connected"):
        stage.join()
    with pytest.raises(Busy, match="different type"):
        stage.subscription.add(Consumer(1, "c", Receiver()), shared=True)


def test_an_exclusive_one_gets_all_again_in_order() -> None:
    stage = Stage(shared=False)
    consumer, receiver = stage.join(permits=3)
    stage.publish(5)
    stage.subscription.ack_up_to(0)
    stage.subscription.redeliver(consumer, [2])
    consumer.permits = 10
    stage.dispatch()
    assert receiver.got[3:] == [(1, 0, None), (2, 0, None), (3, 0, None), (4, 0, None)]


def test_a_delay_ends_when_it_should_and_does_not_hold_up_others() -> None:
    stage = Stage()
    _, receiver = stage.join()
    stage.publish(deliver_at_ms=1500)
    stage.publish(deliver_at_ms=1200)
    stage.publish()
    assert receiver.take() == [2]
    assert stage.dispatch() == 1200
    stage.now_ms = 1200
    assert stage.dispatch() == 1500
    assert receiver.take() == [1]
    stage.now_ms = 1500
    assert stage.dispatch() is None
    assert receiver.take() == [0]


def test_an_exclusive_one_knows_no_delay() -> None:
    stage = Stage(shared=False)
    _, receiver = stage.join()
    stage.publish(deliver_at_ms=9999)
    assert receiver.take() == [0]


def test_members_of_a_batch_that_are_acknowledged_are_named_when_it_comes_again() -> None:
    stage = Stage()
    consumer, receiver = stage.join()
    stage.publish(messages=4)
    stage.subscription.ack(0, 0b1010)
    stage.subscription.redeliver(consumer, None)
    stage.dispatch()
    assert receiver.got[1] == (0, 1, 0b1010)
    assert stage.subscription.ack(0, 0b0101), "none of its members remains"
    assert stage.subscription.backlog == 0


def test_who_does_not_read_or_holds_too_much_gets_no_more() -> None:
    stage = Stage()
    consumer, receiver = stage.join()
    receiver.writable = False
    stage.publish()
    assert receiver.take() == []
    receiver.writable = True
    consumer.unacked_messages = MAX_UNACKED_MESSAGES
    stage.dispatch()
    assert receiver.take() == []
    consumer.unacked_messages = 0
    stage.dispatch()
    assert receiver.take() == [0]


def test_a_backlog_is_read_a_window_at_a_time() -> None:
    stage = Stage()
    stage.publish(10 * WINDOW_ENTRIES)
    consumer, receiver = stage.join(permits=1)
    assert stage.log.reads == WINDOW_ENTRIES
    consumer.permits = 10 * WINDOW_ENTRIES
    stage.dispatch()
    assert receiver.take() == list(range(10 * WINDOW_ENTRIES))


def test_entries_that_are_gone_count_as_acknowledged() -> None:
    stage = Stage()
    stage.publish(6)
    stage.log.deleted = {0, 2, 5}
    _, receiver = stage.join()
    assert receiver.take() == [1, 3, 4]
    assert stage.subscription.backlog == 3


def test_seeking_brings_back_what_is_there() -> None:
    stage = Stage()
    consumer, _ = stage.join()
    stage.publish(3)
    stage.subscription.ack_up_to(2)
    stage.subscription.remove(consumer)
    stage.subscription.seek(0)
    _, receiver = stage.join()
    assert receiver.take() == [1, 2]


step = st.one_of(
    st.tuples(st.just("publish"), st.integers(1, 4), st.sampled_from([0, 0, 0, 1])),
    st.tuples(st.sampled_from(["join", "leave", "ack", "give back", "give all back", "block"]), st.integers(0, 7), st.integers(0, 7)),
    st.tuples(st.just("flow"), st.integers(0, 7), st.integers(1, 9)),
    st.tuples(st.just("wait"), st.just(0), st.just(0)),
)


@settings(max_examples=300)
@given(st.lists(step, max_size=60))
def test_shared_agrees_with_the_model(steps: list[tuple[str, int, int]]) -> None:
    """Each entry is with one consumer at most, or waits; nothing is lost; counts are those given back; who has permits
    and reads does not starve while something waits."""
    stage, consumers, held, acked = Stage(), list[Consumer](), dict[int, Consumer](), set[int]()
    counts: dict[int, int] = {}

    def settle() -> None:
        stage.dispatch()
        for consumer in consumers:
            assert isinstance(consumer.receiver, Receiver)
            for number, count, remaining in consumer.receiver.got:
                assert number not in held and number not in acked, "it is with someone, or done"
                assert count == counts.get(number, 0) and remaining is None
                assert stage.log.entries[number].deliver_at_ms <= stage.now_ms, "it was not due"
                held[number] = consumer
            consumer.receiver.got = []
            assert set(consumer.unacked) == {number for number, holder in held.items() if holder is consumer}
            assert consumer.unacked_messages == sum(stage.log.entries[number].messages for number in consumer.unacked)
        waiting = {e.number for e in stage.log.entries if e.deliver_at_ms <= stage.now_ms} - held.keys() - acked
        assert not waiting or not any(consumer.ready for consumer in consumers), "somebody could have had it"
        assert stage.subscription.backlog == len(stage.log.entries) - len(acked)

    def forget(consumer: Consumer) -> list[int]:
        gone = [number for number, holder in held.items() if holder is consumer]
        for number in gone:
            del held[number]
        return gone

    for what, number, amount in steps:
        chosen = consumers[number % len(consumers)] if consumers else None
        if what == "publish":
            stage.subscription.offer(stage.log.publish(number, stage.now_ms + 500 if amount else 0))
        elif what == "join" and len(consumers) < 4:
            consumers.append(Consumer(len(consumers), "c", Receiver(), amount))
            stage.subscription.add(consumers[-1], shared=True)
        elif what == "ack" and held:
            entry = sorted(held)[number % len(held)]
            stage.subscription.ack(entry)
            acked.add(entry)
            counts.pop(entry, None)
            del held[entry]
        elif what == "wait":
            stage.now_ms += 300
        elif chosen is not None and what == "leave":
            consumers.remove(chosen)
            stage.subscription.remove(chosen)
            forget(chosen)
            counts = counts if consumers else {}
        elif chosen is not None and what == "flow":
            chosen.permits += amount
        elif chosen is not None and what == "block":
            assert isinstance(chosen.receiver, Receiver)
            chosen.receiver.writable = not chosen.receiver.writable
        elif chosen is not None and what == "give all back":
            stage.subscription.redeliver(chosen, None)
            for entry in forget(chosen):
                counts[entry] = counts.get(entry, 0) + 1
        elif chosen is not None and what == "give back" and chosen.unacked:
            entry = sorted(chosen.unacked)[amount % len(chosen.unacked)]
            stage.subscription.redeliver(chosen, [entry])
            del held[entry]
            counts[entry] = counts.get(entry, 0) + 1
        settle()
