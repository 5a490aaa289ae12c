"""The consumers of one connection, readers among them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from broker.lookups import checked_name
from broker.outlets import Outlet, from_words, position_of
from broker.peers import NO_REQUEST, Peer, Refused, refuse, succeed
from broker.pulsar_pb2 import (
    BaseCommand,
    CommandAck,
    CommandAckResponse,
    CommandFlow,
    CommandGetLastMessageId,
    CommandGetLastMessageIdResponse,
    CommandRedeliverUnacknowledgedMessages,
    CommandSeek,
    CommandSubscribe,
    CommandUnsubscribe,
    MessageIdData,
    ServerError,
)
from broker.storage import Storage
from broker.subscriptions import Busy, Consumer
from broker.topics import Attached, Topic, Topics
from broker.writer import Barrier

_NOT_FOUND = "Consumer not found"
_NOT_STORED = "The subscription could not be stored"


class Consuming:
    """All consumers of one peer."""

    def __init__(self, peer: Peer, topics: Topics, storage: Storage) -> None:
        self._peer, self._topics, self._storage = peer, topics, storage
        self._open: dict[int, tuple[Consumer, Outlet]] = {}

    def subscribe(self, command: CommandSubscribe) -> None:
        """Raises Refused. Answered once a new subscription is stored."""
        if command.consumer_id in self._open:
            succeed(self._peer, command.request_id)
            return
        topic = self._topic(command)
        attached = topic.attached.get(command.subscription)
        if attached is None:
            attached = self._attach(topic, command)
        elif attached.durable != command.durable:
            kind = "Durable" if attached.durable else "Non-durable"
            raise Refused(ServerError.NotAllowedError, f"{kind} subscription with the same name already exists.")
        self._connect(topic, attached, command)
        self._storage.submit(Barrier(lambda stored: self._subscribed(command, stored)))

    def flow(self, command: CommandFlow) -> None:
        """Permits for a consumer that is not there are late, and mean nothing."""
        if (found := self._open.get(command.consumer_id)) is not None:
            consumer, outlet = found
            consumer.permits += command.message_permits
            outlet.topic.wake(outlet.attached.subscription)

    def ack(self, command: CommandAck) -> None:
        found = self._open.get(command.consumer_id)
        try:
            if found is None:
                raise Refused(ServerError.ConsumerNotFound, _NOT_FOUND)
            topic, attached = found[1].topic, found[1].attached
            _acknowledge(command, topic, attached)
        except Refused as why:
            self._ack_response(command, why)
            return
        self._topics.acked(topic)
        topic.wake(attached.subscription)
        if command.HasField("request_id"):
            topic.flush(lambda stored: self._ack_response(command, None if stored else Refused(ServerError.PersistenceError, _NOT_STORED)))

    def redeliver(self, command: CommandRedeliverUnacknowledgedMessages) -> None:
        if (found := self._open.get(command.consumer_id)) is not None:
            consumer, outlet = found
            given = [entry for ledger, entry in map(position_of, command.message_ids) if ledger == outlet.topic.topic_id]
            outlet.attached.subscription.redeliver(consumer, given if command.message_ids else None)
            outlet.topic.wake(outlet.attached.subscription)

    def unsubscribe(self, command: CommandUnsubscribe) -> None:
        """Raises Refused."""
        consumer, outlet = self._find(command.consumer_id)
        if outlet.attached.subscription.consumers != [consumer]:
            raise Refused(ServerError.MetadataError, "Unconnected or shared consumer attempting to unsubscribe")
        self._leave(command.consumer_id)
        if outlet.attached.durable:
            told = _answer(self._peer, command.request_id, "The subscription could not be deleted")
            self._topics.unsubscribe(outlet.topic, outlet.attached, told)
        else:
            succeed(self._peer, command.request_id)

    def seek(self, command: CommandSeek) -> None:
        """Raises Refused. As in Pulsar all consumers of the subscription are ended, and their clients come anew."""
        outlet = self._find(command.consumer_id)[1]
        topic, subscription = outlet.topic, outlet.attached.subscription
        mark_delete = self._mark_sought(topic, command)
        for consumer in list(subscription.consumers):
            assert isinstance(consumer.receiver, Outlet)
            consumer.receiver.disconnect()
        subscription.seek(mark_delete)
        topic.flush(_answer(self._peer, command.request_id, "The position could not be stored"))

    def last_message_id(self, command: CommandGetLastMessageId) -> None:
        """Raises Refused."""
        outlet = self._find(command.consumer_id)[1]
        topic, mark = outlet.topic, outlet.attached.subscription.cursor.mark_delete
        answer = CommandGetLastMessageIdResponse(
            request_id=command.request_id,
            last_message_id=_last_message_id(topic),
            consumer_mark_delete_position=MessageIdData(ledger_id=topic.topic_id, entry_id=mark % 2**64),
        )
        self._peer.send(BaseCommand(type=BaseCommand.GET_LAST_MESSAGE_ID_RESPONSE, get_last_message_id_response=answer))

    def close(self, consumer_id: int, request_id: int) -> None:
        self._leave(consumer_id)
        succeed(self._peer, request_id)

    def readable_again(self) -> None:
        """The peer reads again what is sent to it."""
        for _, outlet in self._open.values():
            outlet.topic.wake(outlet.attached.subscription)

    def gone(self) -> None:
        """The connection has ended."""
        for consumer_id in list(self._open):
            self._leave(consumer_id)

    def _find(self, consumer_id: int) -> tuple[Consumer, Outlet]:
        found = self._open.get(consumer_id)
        if found is None:
            raise Refused(ServerError.MetadataError, _NOT_FOUND)
        return found

    def _topic(self, command: CommandSubscribe) -> Topic:
        name = _checked(command)
        topic = self._topics.find(name)
        if topic is None and not command.force_topic_creation:
            raise Refused(ServerError.TopicNotFound, f"Topic {name} does not exist")
        return topic or self._topics.get_or_create(name)

    def _attach(self, topic: Topic, command: CommandSubscribe) -> Attached:
        earliest = command.initial_position == CommandSubscribe.Earliest
        if not command.durable:
            return topic.attach(command.subscription, _reader_start(topic, command, earliest), None)

        def told(stored: bool) -> None:
            if not stored:
                topic.attached.pop(command.subscription, None)

        return self._topics.subscribe(topic, command.subscription, earliest=earliest, told=told)

    def _connect(self, topic: Topic, attached: Attached, command: CommandSubscribe) -> None:
        outlet = Outlet(self._peer, topic, attached, command.consumer_id, self._leave)
        consumer = Consumer(command.consumer_id, command.consumer_name, outlet)
        consumer.address, consumer.client_version, consumer.connected_at_s = self._peer.address, self._peer.client_version, time.time()
        try:
            attached.subscription.add(consumer, shared=command.sub_type == CommandSubscribe.Shared)
        except Busy as why:
            raise Refused(ServerError.ConsumerBusy, str(why)) from None
        self._open[command.consumer_id] = (consumer, outlet)

    def _subscribed(self, command: CommandSubscribe, stored: bool) -> None:
        if stored:
            succeed(self._peer, command.request_id)
        else:
            self._leave(command.consumer_id)
            refuse(self._peer, command.request_id, ServerError.PersistenceError, _NOT_STORED)

    def _leave(self, consumer_id: int) -> None:
        found = self._open.pop(consumer_id, None)
        if found is not None:
            consumer, outlet = found
            outlet.topic.consumer_left(outlet.attached, consumer)

    def _mark_sought(self, topic: Topic, command: CommandSeek) -> int:
        if command.HasField("message_publish_time"):
            first = self._storage.first_published(topic.topic_id, command.message_publish_time)
            return topic.last_entry if first is None else first - 1
        if not command.HasField("message_id"):
            raise Refused(ServerError.MetadataError, "Seek to neither a message id nor a time")
        ledger, entry = position_of(command.message_id)
        return _mark_within(topic, ledger, entry - 1)

    def _ack_response(self, command: CommandAck, trouble: Refused | None) -> None:
        if not command.HasField("request_id"):
            return
        answer = CommandAckResponse(consumer_id=command.consumer_id, request_id=command.request_id)
        if trouble is not None:
            answer.error, answer.message = trouble.error, trouble.message
        self._peer.send(BaseCommand(type=BaseCommand.ACK_RESPONSE, ack_response=answer))


def _checked(command: CommandSubscribe) -> str:
    """The topic's full name. Raises Refused for what this broker cannot do."""
    if command.sub_type not in (CommandSubscribe.Shared, CommandSubscribe.Exclusive):
        kind = CommandSubscribe.SubType.Name(command.sub_type)
        raise Refused(ServerError.NotAllowedError, f"{kind} subscriptions are not supported by the embedded broker")
    if command.read_compacted:
        raise Refused(ServerError.NotAllowedError, "Compaction is not supported by the embedded broker")
    if command.priority_level or command.start_message_rollback_duration_sec:
        raise Refused(ServerError.NotAllowedError, "Priority levels and rollbacks are not supported by the embedded broker")
    if command.HasField("schema"):
        raise Refused(ServerError.IncompatibleSchema, "Schemas are not supported by the embedded broker")
    if not command.subscription:
        raise Refused(ServerError.NotAllowedError, "Empty subscription name")
    return checked_name(command.topic)


def _acknowledge(command: CommandAck, topic: Topic, attached: Attached) -> None:
    """Raises Refused."""
    if command.txnid_most_bits or command.txnid_least_bits:
        raise Refused(ServerError.NotAllowedError, "Transactions are not supported by the embedded broker")
    subscription = attached.subscription
    cumulative = command.ack_type == CommandAck.Cumulative
    if cumulative and subscription.shared:
        raise Refused(ServerError.NotAllowedError, "Cumulative acknowledgement on a Shared subscription")
    for entry, remaining in _positions(command.message_id, topic):
        if cumulative:
            subscription.ack_up_to(entry - 1 if remaining else entry)
        if not cumulative or remaining:
            subscription.ack(entry, remaining)


def _positions(message_ids: Iterable[MessageIdData], topic: Topic) -> Iterable[tuple[int, int]]:
    """Entries of this topic, and of a batch the bits of the members that stay."""
    for message_id in message_ids:
        ledger, entry = position_of(message_id)
        if ledger == topic.topic_id and entry >= 0:
            yield entry, from_words(message_id.ack_set)


def _reader_start(topic: Topic, command: CommandSubscribe, earliest: bool) -> int:
    """The mark-delete position that a reader starts from: its start is read first, and skipped by its client where it
    is not wanted."""
    if not command.HasField("start_message_id"):
        return topic.first_entry - 1 if earliest else topic.last_entry
    ledger, entry = position_of(command.start_message_id)
    return _mark_within(topic, ledger, entry - 1)


def _mark_within(topic: Topic, ledger: int, mark_delete: int) -> int:
    """Other ledgers lie before or behind this topic's only one."""
    if ledger < topic.topic_id:
        mark_delete = -1
    elif ledger > topic.topic_id:
        mark_delete = topic.last_entry
    return min(max(mark_delete, topic.first_entry - 1), topic.last_entry)


def _last_message_id(topic: Topic) -> MessageIdData:
    if topic.first_entry > topic.last_entry:
        return MessageIdData(ledger_id=NO_REQUEST, entry_id=NO_REQUEST)
    batch_index = topic.last_messages - 1 if topic.last_messages > 1 else -1
    return MessageIdData(ledger_id=topic.topic_id, entry_id=topic.last_entry, batch_index=batch_index)


def _answer(peer: Peer, request_id: int, trouble: str) -> Callable[[bool], None]:
    def told(stored: bool) -> None:
        if stored:
            succeed(peer, request_id)
        else:
            refuse(peer, request_id, ServerError.PersistenceError, trouble)

    return told
