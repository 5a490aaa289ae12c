"""Random sequences of protocol commands, over several connections, against the broker and against a plain model of
Pulsar's semantics: they agree on who holds what, how often it was given back, and what is left."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.pulsar_pb2 import (
    BaseCommand,
    CommandAck,
    CommandCloseConsumer,
    CommandFlow,
    CommandProducer,
    CommandRedeliverUnacknowledgedMessages,
    CommandSend,
    CommandSubscribe,
    MessageIdData,
    MessageMetadata,
    ServerError,
)
from broker.wire import checksummed
from tests.real.embedded_broker import EmbeddedBroker, RawClient
from tests.real.processes import wait_until

CONNECTIONS = 3
DELAY_MS = 60


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with closing(EmbeddedBroker()) as broker:
        yield broker.start()


@dataclass
class Published:
    messages: int
    due_s: float  # by the wall clock


@dataclass(eq=False)
class Held:
    """A consumer as the model knows it."""

    connection: int
    consumer_id: int
    permits: int = 0
    entries: set[int] = field(default_factory=set)


class Model:
    """Pulsar's rules for a Shared or Exclusive subscription, in their plainest form."""

    def __init__(self, shared: bool) -> None:
        self.shared = shared
        self.published: list[Published] = []
        self.acked: set[int] = set()
        self.consumers: list[Held] = []
        self.counts: dict[int, int] = {}

    def takes(self) -> bool:
        """Whether one more consumer is let in."""
        return self.shared or not self.consumers

    def got(self, consumer: Held, entry: int, count: int) -> None:
        assert entry not in self.acked, "it was acknowledged"
        assert not any(entry in other.entries for other in self.consumers), "somebody holds it"
        assert count == self.counts.get(entry, 0)
        assert not self.shared or time.time() >= self.published[entry].due_s, "it was not due"
        assert consumer.permits > 0, "it had no permits"
        consumer.permits -= self.published[entry].messages
        consumer.entries.add(entry)

    def waiting(self) -> set[int]:
        """What somebody should have, were there permits. Something just about due is left out."""
        soon_s = time.time() - 0.5
        held = set[int]().union(*(consumer.entries for consumer in self.consumers))
        due = {entry for entry, published in enumerate(self.published) if published.due_s <= soon_s or not self.shared}
        return due - held - self.acked

    def settled(self) -> None:
        assert not self.waiting() or all(consumer.permits <= 0 for consumer in self.consumers), "somebody could have had it"

    def ack(self, entry: int, *, cumulative: bool) -> None:
        for each in range(entry + 1) if cumulative else [entry]:
            self.acked.add(each)
            self.counts.pop(each, None)
            for consumer in self.consumers:
                consumer.entries.discard(each)

    def give_back(self, consumer: Held, entries: set[int]) -> None:
        if not self.shared:
            consumer.entries.clear()  # all come again, in order, and uncounted
            return
        for entry in entries & consumer.entries:
            consumer.entries.remove(entry)
            self.counts[entry] = self.counts.get(entry, 0) + 1

    def left(self, consumer: Held) -> None:
        self.consumers.remove(consumer)
        if not self.consumers:
            self.counts = {}


class Play:
    """The same commands to both."""

    def __init__(self, broker: EmbeddedBroker, shared: bool) -> None:
        self.broker, self.model = broker, Model(shared)
        self.local = f"agree-{uuid.uuid4().hex[:10]}"
        self.topic = f"persistent://public/default/{self.local}"
        self.ids = itertools.count(1)
        self.clients = [RawClient(broker) for _ in range(CONNECTIONS)]
        self.publisher = RawClient(broker)
        producer = CommandProducer(topic=self.topic, producer_id=1, request_id=1)
        assert self.publisher.ask(BaseCommand(type=BaseCommand.PRODUCER, producer=producer)).type == BaseCommand.PRODUCER_SUCCESS
        self.ledger = 0
        self.join(0, 0)  # a topic without a subscription would be another story
        self.leave(0)

    def publish(self, messages: int, delayed: bool) -> None:
        """A batch has no delay of its own here, as clients send none."""
        at_ms = int(time.time() * 1000) + DELAY_MS if delayed and messages == 1 else 0
        metadata = MessageMetadata(publish_time=1, num_messages_in_batch=messages, deliver_at_time=at_ms)
        number = len(self.model.published)
        send = CommandSend(producer_id=1, sequence_id=number, num_messages=messages)
        body = checksummed(metadata.SerializeToString(), str(number).encode())
        self.model.published.append(Published(messages, at_ms / 1000))
        receipt = self.publisher.ask(BaseCommand(type=BaseCommand.SEND, send=send), body).send_receipt
        assert (receipt.sequence_id, receipt.message_id.entry_id) == (number, number)
        self.ledger = receipt.message_id.ledger_id

    def join(self, connection: int, permits: int) -> None:
        client, number = self.clients[connection], next(self.ids)
        kind = CommandSubscribe.Shared if self.model.shared else CommandSubscribe.Exclusive
        subscribe = CommandSubscribe(topic=self.topic, subscription="s", sub_type=kind, consumer_id=number, request_id=number)
        answer = client.ask(BaseCommand(type=BaseCommand.SUBSCRIBE, subscribe=subscribe))
        if not self.model.takes():
            assert answer.error.error == ServerError.ConsumerBusy
            return
        assert answer.success.request_id == number
        self.model.consumers.append(Held(connection, number))
        if permits:
            self.flow(len(self.model.consumers) - 1, permits)

    def leave(self, which: int) -> None:
        consumer = self._consumer(which)
        if consumer is not None:
            close = CommandCloseConsumer(consumer_id=consumer.consumer_id, request_id=next(self.ids))
            self._take()
            self.model.left(consumer)  # what it held may be with others before its answer is here
            assert self.clients[consumer.connection].ask(BaseCommand(type=BaseCommand.CLOSE_CONSUMER, close_consumer=close)).success

    def cut(self, connection: int) -> None:
        self._take()
        self.clients[connection].close()
        self.clients[connection] = RawClient(self.broker)
        for consumer in [consumer for consumer in self.model.consumers if consumer.connection == connection]:
            self.model.left(consumer)
        left = len(self.model.consumers)
        wait_until(lambda: self._stats_consumers() == left, within_s=5, what="end of the cut connection", every_s=0.002)

    def flow(self, which: int, permits: int) -> None:
        consumer = self._consumer(which)
        if consumer is not None:
            consumer.permits += permits
            flow = CommandFlow(consumer_id=consumer.consumer_id, message_permits=permits)
            self.clients[consumer.connection].send(BaseCommand(type=BaseCommand.FLOW, flow=flow))

    def ack(self, which: int, entry: int, cumulative: bool) -> None:
        """Whatever it holds, by whichever consumer; cumulatively where that is allowed."""
        consumer = self._consumer(which)
        held = sorted(set[int]().union(*(each.entries for each in self.model.consumers)))
        if consumer is None or not held:
            return
        cumulative = cumulative and not self.model.shared
        chosen = held[entry % len(held)]
        kind = CommandAck.Cumulative if cumulative else CommandAck.Individual
        ack = CommandAck(consumer_id=consumer.consumer_id, ack_type=kind, message_id=[self._id(chosen)], request_id=next(self.ids))
        answer = self.clients[consumer.connection].ask(BaseCommand(type=BaseCommand.ACK, ack=ack)).ack_response
        assert answer.request_id == ack.request_id and not answer.HasField("error")
        self._take()
        self.model.ack(chosen, cumulative=cumulative)

    def give_back(self, which: int, entry: int, everything: bool) -> None:
        consumer = self._consumer(which)
        if consumer is None or not consumer.entries:
            return
        chosen = sorted(consumer.entries)[entry % len(consumer.entries)]
        redeliver = CommandRedeliverUnacknowledgedMessages(consumer_id=consumer.consumer_id)
        if not everything:
            redeliver.message_ids.add(ledger_id=self.ledger, entry_id=chosen)
        self._take()
        self.model.give_back(consumer, set(consumer.entries) if everything else {chosen})
        self.clients[consumer.connection].send(BaseCommand(type=BaseCommand.REDELIVER_UNACKNOWLEDGED_MESSAGES, redeliver=redeliver))

    def wait(self) -> None:
        time.sleep(DELAY_MS / 1000 + 0.02)

    def settle(self) -> None:
        self._take()
        self.model.settled()

    def end(self) -> None:
        """What is left goes to one last consumer, all of it, in order where no delay mixes it."""
        for connection in range(CONNECTIONS):
            self.cut(connection)
        backlog = len(self.model.published) - len(self.model.acked)
        assert self._stats()["msgBacklog"] == backlog
        self.wait()
        self.join(0, 10_000)
        self.settle()
        assert self.model.consumers[0].entries == set(range(len(self.model.published))) - self.model.acked
        for client in [*self.clients, self.publisher]:
            client.close()

    def _consumer(self, which: int) -> Held | None:
        return self.model.consumers[which % len(self.model.consumers)] if self.model.consumers else None

    def _take(self) -> None:
        """What has arrived at all connections, in an order that a command to one cannot have mixed with another's."""
        for number, client in enumerate(self.clients):
            for message in client.settle():
                consumer = next(c for c in self.model.consumers if (c.connection, c.consumer_id) == (number, message.consumer_id))
                self.model.got(consumer, message.message_id.entry_id, message.redelivery_count)

    def _id(self, entry: int) -> MessageIdData:
        return MessageIdData(ledger_id=self.ledger, entry_id=entry)

    def _stats(self) -> dict[str, object]:
        found: dict[str, object] = self.broker.admin("GET", f"persistent/public/default/{self.local}/stats")["subscriptions"]["s"]
        return found

    def _stats_consumers(self) -> int:
        consumers = self._stats()["consumers"]
        assert isinstance(consumers, list)
        return len(consumers)


which, amount = st.integers(0, 5), st.integers(0, 9)
command = st.one_of(
    st.tuples(st.just("publish"), st.integers(1, 3), st.sampled_from([False, False, False, True])),
    st.tuples(st.just("join"), st.integers(0, CONNECTIONS - 1), amount),
    st.tuples(st.just("flow"), which, st.integers(1, 9)),
    st.tuples(st.just("ack"), which, amount, st.booleans()),
    st.tuples(st.just("give_back"), which, amount, st.booleans()),
    st.tuples(st.just("leave"), which),
    st.tuples(st.just("cut"), st.integers(0, CONNECTIONS - 1)),
    st.tuples(st.just("wait")),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.booleans(), st.lists(command, min_size=5, max_size=40))
def test_broker_and_model_agree(broker: EmbeddedBroker, shared: bool, commands: list[tuple[object, ...]]) -> None:
    play = Play(broker, shared)
    for name, *arguments in commands:
        getattr(play, str(name))(*arguments)
        play.settle()
    play.end()
