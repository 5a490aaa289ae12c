"""The far end of a consumer: entries become MESSAGE commands on its connection."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from broker.peers import NO_REQUEST, Peer
from broker.pulsar_pb2 import BaseCommand, CommandCloseConsumer, CommandMessage, MessageIdData
from broker.subscriptions import Consumer, Entry
from broker.topics import Attached, Topic

_WORD = (1 << 64) - 1


class Outlet:
    """forget: takes the consumer from its connection, when the broker ends it."""

    def __init__(self, peer: Peer, topic: Topic, attached: Attached, consumer_id: int, forget: Callable[[int], None]) -> None:
        self.topic, self.attached = topic, attached
        self._peer, self._consumer_id, self._forget = peer, consumer_id, forget
        message_id = MessageIdData(ledger_id=topic.topic_id)
        self._command = BaseCommand(type=BaseCommand.MESSAGE, message=CommandMessage(consumer_id=consumer_id, message_id=message_id))

    @property
    def writable(self) -> bool:
        return self._peer.writable

    def deliver(self, consumer: Consumer, entry: Entry, redelivery_count: int, remaining: int | None) -> None:
        message = self._command.message
        message.message_id.entry_id = entry.number
        message.redelivery_count = redelivery_count
        if remaining is not None or message.ack_set:
            message.ack_set[:] = [] if remaining is None else to_words(remaining)
        self.topic.counters.messages_out += entry.messages
        self.topic.counters.bytes_out += len(entry.body)
        self._peer.send(self._command, entry.body)

    def disconnect(self) -> None:
        """Its client makes the consumer anew."""
        self._forget(self._consumer_id)
        command = CommandCloseConsumer(consumer_id=self._consumer_id, request_id=NO_REQUEST)
        self._peer.send(BaseCommand(type=BaseCommand.CLOSE_CONSUMER, close_consumer=command))


def to_words(bits: int) -> list[int]:
    """A bit set as Java's BitSet.toLongArray gives it: signed words, the lowest first."""
    words = []
    while bits:
        words.append(_signed(bits & _WORD))
        bits >>= 64
    return words


def from_words(words: Sequence[int]) -> int:
    return sum((word & _WORD) << (64 * position) for position, word in enumerate(words))


def position_of(message_id: MessageIdData) -> tuple[int, int]:
    """Ledger and entry, below zero where the client means "before the first"."""
    return _signed(message_id.ledger_id), _signed(message_id.entry_id)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
