"""The producers of one connection: a message is answered with its receipt once it is committed, in order."""

from __future__ import annotations

from dataclasses import dataclass

from broker.lookups import checked_name
from broker.peers import Peer, Refused, refuse, succeed
from broker.pulsar_pb2 import (
    BaseCommand,
    CommandProducer,
    CommandProducerSuccess,
    CommandSend,
    CommandSendError,
    CommandSendReceipt,
    MessageIdData,
    ServerError,
)
from broker.storage import Storage
from broker.topics import Producer, Topic, Topics
from broker.wire import ChecksumMismatch, WireError, parse_metadata
from broker.writer import Append

MAX_PENDING = 1000  # of a connection, as Pulsar's maxPendingPublishRequestsPerConnection
MAX_PENDING_BYTES = 16 * 1024 * 1024
MAX_QUEUED_BYTES = 64 * 1024 * 1024  # of all connections


@dataclass(eq=False)
class _Open:
    """`closing`: the request that is answered once nothing is pending."""

    topic: Topic
    producer: Producer
    pending: int = 0
    closing: int | None = None


class Publishing:
    """All producers of one peer."""

    def __init__(self, peer: Peer, topics: Topics, storage: Storage) -> None:
        self._peer, self._topics, self._storage = peer, topics, storage
        self._open: dict[int, _Open] = {}
        self._pending = self._pending_bytes = 0
        self._holding = False
        self._receipt = BaseCommand(type=BaseCommand.SEND_RECEIPT, send_receipt=CommandSendReceipt(message_id=MessageIdData()))

    def open(self, command: CommandProducer) -> None:
        """Raises Refused."""
        topic = self._topics.get_or_create(_checked(command))
        if (known := self._open.get(command.producer_id)) is not None:
            self._opened(command.request_id, known.producer)
            return
        producer = self._producer(command)
        _take_over(topic, producer)
        topic.producers[producer.name] = producer
        self._open[command.producer_id] = _Open(topic, producer)
        if name := command.initial_subscription_name:
            self._subscribe_first(topic, name, command.request_id, producer)
        else:
            self._opened(command.request_id, producer)

    def send(self, command: CommandSend, body: bytes) -> None:
        """Raises WireError for a producer that is not open."""
        opened = self._open.get(command.producer_id)
        if opened is None:
            raise WireError("a message from a producer that is not open")
        try:
            metadata = parse_metadata(body)
            _check_transaction(command)
        except ChecksumMismatch:
            self._send_error(command, ServerError.ChecksumError, "Checksum failed on the broker")
            return
        except Refused as why:
            self._send_error(command, why.error, why.message)
            return
        sent = _Sent(self, opened, command.sequence_id, command.highest_sequence_id)
        opened.topic.append(max(1, metadata.num_messages_in_batch), metadata.deliver_at_time, metadata.publish_time, body, sent.finish)
        opened.pending += 1
        self._count(1, len(body))

    def close(self, producer_id: int, request_id: int) -> None:
        opened = self._open.get(producer_id)
        if opened is None or not opened.pending:
            self._close(producer_id)
            succeed(self._peer, request_id)
        else:
            opened.closing = request_id

    def gone(self) -> None:
        """The connection has ended. What was sent is stored all the same."""
        for producer_id in list(self._open):
            self._close(producer_id)

    def finished(self, opened: _Open, append: Append, stored: bool, sequence_id: int, highest_sequence_id: int) -> None:
        if stored:
            self._send_receipt(opened, append, sequence_id, highest_sequence_id)
        else:
            sent = CommandSend(producer_id=opened.producer.producer_id, sequence_id=sequence_id)
            self._send_error(sent, ServerError.PersistenceError, "The message could not be stored")
        opened.pending -= 1
        self._count(-1, -len(append.body))
        if opened.closing is not None and not opened.pending:
            self.close(opened.producer.producer_id, opened.closing)

    def _opened(self, request_id: int, producer: Producer) -> None:
        answer = CommandProducerSuccess(request_id=request_id, producer_name=producer.name, last_sequence_id=-1, schema_version=b"")
        self._peer.send(BaseCommand(type=BaseCommand.PRODUCER_SUCCESS, producer_success=answer))

    def _producer(self, command: CommandProducer) -> Producer:
        """A client that comes back brings the name that it was given."""
        name = command.producer_name or self._topics.generate_name()
        generated = not command.producer_name or not command.user_provided_producer_name
        return Producer(name, command.producer_id, command.epoch, generated, self, self._peer.address, self._peer.client_version)

    def _subscribe_first(self, topic: Topic, name: str, request_id: int, producer: Producer) -> None:
        def told(stored: bool) -> None:
            if stored:
                self._opened(request_id, producer)
            else:
                refuse(self._peer, request_id, ServerError.PersistenceError, "The subscription could not be stored")

        if name in topic.attached:
            told(True)
        else:
            self._topics.subscribe(topic, name, earliest=True, told=told)

    def _close(self, producer_id: int) -> None:
        opened = self._open.pop(producer_id, None)
        if opened is not None and opened.topic.producers.get(opened.producer.name) is opened.producer:
            del opened.topic.producers[opened.producer.name]

    def _send_receipt(self, opened: _Open, append: Append, sequence_id: int, highest_sequence_id: int) -> None:
        opened.producer.published_messages += append.messages
        receipt = self._receipt.send_receipt
        receipt.producer_id = opened.producer.producer_id
        receipt.sequence_id, receipt.highest_sequence_id = sequence_id, highest_sequence_id
        receipt.message_id.ledger_id, receipt.message_id.entry_id = opened.topic.topic_id, append.number
        self._peer.send(self._receipt)

    def _send_error(self, command: CommandSend, error: ServerError, message: str) -> None:
        answer = CommandSendError(producer_id=command.producer_id, sequence_id=command.sequence_id, error=error, message=message)
        self._peer.send(BaseCommand(type=BaseCommand.SEND_ERROR, send_error=answer))

    def _count(self, messages: int, size: int) -> None:
        """A peer that publishes faster than the disk takes it is not read from for a while."""
        self._pending += messages
        self._pending_bytes += size
        if not self._holding and messages > 0:
            full = self._pending >= MAX_PENDING or self._pending_bytes >= MAX_PENDING_BYTES
            if full or self._storage.queued_bytes >= MAX_QUEUED_BYTES:
                self._holding = True
                self._peer.hold()
        elif self._holding and self._pending <= MAX_PENDING // 2 and self._pending_bytes <= MAX_PENDING_BYTES // 2:
            self._holding = False
            self._peer.release()


@dataclass(slots=True)
class _Sent:
    """What a receipt needs to know."""

    publishing: Publishing
    opened: _Open
    sequence_id: int
    highest_sequence_id: int

    def finish(self, append: Append, stored: bool) -> None:
        self.publishing.finished(self.opened, append, stored, self.sequence_id, self.highest_sequence_id)


def _checked(command: CommandProducer) -> str:
    """The topic's full name. Raises Refused for what this broker cannot do."""
    if command.producer_access_mode != 0:
        raise Refused(ServerError.NotAllowedError, "Only the Shared access mode is supported by the embedded broker")
    if command.txn_enabled:
        raise Refused(ServerError.NotAllowedError, "Transactions are not supported by the embedded broker")
    if command.HasField("schema"):
        raise Refused(ServerError.IncompatibleSchema, "Schemas are not supported by the embedded broker")
    return checked_name(command.topic)


def _check_transaction(command: CommandSend) -> None:
    if command.txnid_most_bits or command.txnid_least_bits:
        raise Refused(ServerError.NotAllowedError, "Transactions are not supported by the embedded broker")


def _take_over(topic: Topic, producer: Producer) -> None:
    """A client that lost its connection comes back before the broker has noticed: its newer epoch wins, as in Pulsar.
    Raises Refused."""
    other = topic.producers.get(producer.name)
    if other is None:
        return
    same_client = other.owner is producer.owner and other.producer_id == producer.producer_id
    if not (other.epoch < producer.epoch and (same_client or (producer.generated and other.generated))):
        raise Refused(ServerError.ProducerBusy, f"Producer with name '{producer.name}' is already connected to topic")
