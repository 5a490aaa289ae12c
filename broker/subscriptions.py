"""A subscription: who gets which entry, and when again. Pure: it knows neither sockets nor files nor clocks.

Semantics as in Pulsar 4.0. Shared: entries go round robin to consumers that have permits, a batch whole to one; what a
consumer held when it left goes to the others at once, with no redelivery counted; a consumer that gives back counts
one. Exclusive: one consumer, in order; giving back rewinds. When all have left, counts are forgotten and the
subscription starts again at the first entry that is not acknowledged.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from broker.cursors import Cursor

MAX_UNACKED_MESSAGES = 50_000  # of one consumer, as Pulsar's maxUnackedMessagesPerConsumer
WINDOW_ENTRIES = 500
WINDOW_BYTES = 1024 * 1024
AGAIN_ENTRIES = 16


class Busy(Exception):
    """Other consumers are connected that this one cannot be beside."""


class Entry(NamedTuple):
    """What was published at once: one message or a batch. `deliver_at_ms`: UTC, 0 for at once; `body`: as it came."""

    number: int
    messages: int
    deliver_at_ms: int
    body: bytes


class Source(Protocol):
    """A topic's stored entries."""

    @property
    def last_entry(self) -> int:
        """The number of the last; -1 before the first."""

    def read(self, first: int, max_entries: int, max_bytes: int) -> list[Entry]:
        """From `first` on, in order; at least one where there is one."""

    def fetch(self, numbers: Sequence[int]) -> list[Entry]:
        """Those of them that are still there, in order."""


class Receiver(Protocol):
    """The far end of a consumer."""

    @property
    def writable(self) -> bool:
        """Whether it reads what is sent to it."""

    def deliver(self, consumer: Consumer, entry: Entry, redelivery_count: int, remaining: int | None) -> None:
        """`remaining`: bits of the members that are not acknowledged; None: all of them."""


@dataclass(eq=False)
class Consumer:
    """`unacked`: entry → messages of it; permits count messages, and go below zero over a batch."""

    consumer_id: int
    name: str
    receiver: Receiver
    permits: int = 0
    unacked: dict[int, int] = field(default_factory=dict)
    unacked_messages: int = 0
    delivered_messages: int = 0
    delivered_bytes: int = 0
    address: str = ""
    client_version: str = ""
    connected_at_s: float = 0.0  # UTC

    @property
    def ready(self) -> bool:
        return self.permits > 0 and self.unacked_messages < MAX_UNACKED_MESSAGES and self.receiver.writable

    def take_back(self, entry: int) -> bool:
        """False: it does not hold that entry."""
        messages = self.unacked.pop(entry, None)
        self.unacked_messages -= messages or 0
        return messages is not None


class Subscription:
    """Call `dispatch` after anything that may let an entry go out."""

    def __init__(self, name: str, cursor: Cursor, source: Source) -> None:
        self.name, self.cursor = name, cursor
        self.consumers: list[Consumer] = []
        self.shared = True
        self.newly_acked: list[int] = []  # for the topic, which takes them and deletes what everyone has acknowledged
        self.delivered_messages = self.delivered_bytes = 0
        self._source = source
        self._turn = 0
        self._holders: dict[int, Consumer] = {}
        self._redeliveries: dict[int, int] = {}
        self._window: deque[Entry] = deque()
        self._window_bytes = 0
        self._again: deque[Entry] = deque()
        self._replay: list[int] = []  # a heap; `_replayed` holds the same
        self._replayed: set[int] = set()
        self._delayed: list[tuple[int, int]] = []  # a heap of UTC ms and entry
        self._next_read = 0
        self._rewind()

    @property
    def backlog(self) -> int:
        return self.cursor.backlog(self._source.last_entry)

    @property
    def delayed(self) -> int:
        return len(self._delayed)

    def add(self, consumer: Consumer, *, shared: bool) -> None:
        """Raises Busy."""
        if self.consumers and shared != self.shared:
            raise Busy("Subscription is of different type")
        if self.consumers and not shared:
            raise Busy("Exclusive consumer is already connected")
        self.shared = shared
        self.consumers.append(consumer)

    def remove(self, consumer: Consumer) -> None:
        if consumer not in self.consumers:
            return
        self.consumers.remove(consumer)
        for entry in consumer.unacked:
            del self._holders[entry]
        if self.consumers:
            self._put_back(consumer.unacked)
        else:
            self._redeliveries.clear()
            self._rewind()

    def offer(self, entry: Entry) -> None:
        """A new entry, in memory already: taken along where nothing before it is still to be read."""
        if self.consumers and entry.number == self._next_read and self._window_has_room():
            self._append(entry)
            self._next_read += 1

    def ack(self, number: int, remaining: int = 0) -> bool:
        """By whichever consumer. `remaining`: bits of a batch's members that stay. True: the entry is done."""
        if number > self._source.last_entry:
            return False
        if not (self.cursor.ack_members(number, remaining) if remaining else self.cursor.ack(number)):
            return False
        self.newly_acked.append(number)
        self._release(number)
        return True

    def ack_up_to(self, number: int) -> None:
        """Cumulatively; for Exclusive only."""
        if self.cursor.ack_up_to(min(number, self._source.last_entry)):
            for held in [held for held in self._holders if held <= number]:
                self._release(held)

    def redeliver(self, consumer: Consumer, numbers: Iterable[int] | None) -> None:
        """What a consumer gives back; None: all that it holds. Of Exclusive all come again, in order."""
        if not self.shared:
            for entry in list(consumer.unacked):
                self._release(entry)
            self._rewind()
            return
        given = [entry for entry in (list(consumer.unacked) if numbers is None else numbers) if consumer.take_back(entry)]
        for entry in given:
            del self._holders[entry]
            self._redeliveries[entry] = self._redeliveries.get(entry, 0) + 1
        self._put_back(given)

    def seek(self, mark_delete: int) -> None:
        """All after `mark_delete` comes (again). Without consumers only."""
        self.cursor.reset(mark_delete)
        self._rewind()

    def dispatch(self, now_ms: int) -> int | None:
        """Hands out what can be handed out. Returns when to come again at the latest, UTC ms; None: when something happens."""
        self._end_delays(now_ms)
        while (position := self._next_ready()) is not None and (entry := self._next_entry(now_ms)) is not None:
            self._turn = position + 1  # a turn that brought nothing is not used up
            self._hand_out(self.consumers[position], entry)
        return self._delayed[0][0] if self._delayed and self.consumers else None

    def _hand_out(self, consumer: Consumer, entry: Entry) -> None:
        remaining = self.cursor.remaining(entry.number)
        messages = entry.messages if remaining is None else remaining.bit_count()
        consumer.permits -= messages
        consumer.unacked[entry.number] = messages
        consumer.unacked_messages += messages
        consumer.delivered_messages += messages
        consumer.delivered_bytes += len(entry.body)
        self.delivered_messages += messages
        self.delivered_bytes += len(entry.body)
        self._holders[entry.number] = consumer
        consumer.receiver.deliver(consumer, entry, self._redeliveries.get(entry.number, 0), remaining)

    def _next_ready(self) -> int | None:
        count = len(self.consumers)
        for step in range(count):
            position = (self._turn + step) % count
            if self.consumers[position].ready:
                return position
        return None

    def _next_entry(self, now_ms: int) -> Entry | None:
        while (entry := self._take()) is not None:
            if self.cursor.is_acked(entry.number):
                continue
            if self.shared and entry.deliver_at_ms > now_ms:
                heapq.heappush(self._delayed, (entry.deliver_at_ms, entry.number))
                continue
            return entry
        return None

    def _take(self) -> Entry | None:
        """What comes again goes first."""
        while not self._again and self._replay:
            self._read_again()
        if self._again:
            return self._again.popleft()
        while not self._window and self._read_on():
            pass
        if not self._window:
            return None
        entry = self._window.popleft()
        self._window_bytes -= len(entry.body)
        return entry

    def _read_again(self) -> None:
        popped = [heapq.heappop(self._replay) for _ in range(min(len(self._replay), AGAIN_ENTRIES))]
        self._replayed.difference_update(popped)
        wanted = [number for number in popped if not self.cursor.is_acked(number)]
        self._again.extend(self._source.fetch(wanted))
        self._gone(set(wanted) - {entry.number for entry in self._again})

    def _read_on(self) -> bool:
        """False: there is nothing to read."""
        first, last = self.cursor.next_unacked(self._next_read), self._source.last_entry
        if first > last:
            self._next_read = last + 1
            return False
        entries = self._source.read(first, WINDOW_ENTRIES, WINDOW_BYTES)
        self._next_read = entries[-1].number + 1 if entries else last + 1
        for entry in entries:
            self._append(entry)
        self._gone(set(range(first, self._next_read)) - {entry.number for entry in entries})
        return True

    def _gone(self, numbers: Iterable[int]) -> None:
        """Deleted, as everyone who was there had acknowledged them: so they are for this one too."""
        for number in numbers:
            self.cursor.ack(number)

    def _append(self, entry: Entry) -> None:
        self._window.append(entry)
        self._window_bytes += len(entry.body)

    def _window_has_room(self) -> bool:
        return len(self._window) < WINDOW_ENTRIES and self._window_bytes < WINDOW_BYTES

    def _put_back(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if number not in self._replayed and not self.cursor.is_acked(number):
                self._replayed.add(number)
                heapq.heappush(self._replay, number)

    def _end_delays(self, now_ms: int) -> None:
        while self._delayed and self._delayed[0][0] <= now_ms:
            self._put_back([heapq.heappop(self._delayed)[1]])

    def _release(self, number: int) -> None:
        """Nobody holds it any more."""
        self._redeliveries.pop(number, None)
        holder = self._holders.pop(number, None)
        if holder is not None:
            holder.take_back(number)

    def _rewind(self) -> None:
        self._again.clear()
        self._window.clear()
        self._window_bytes = 0
        self._replay.clear()
        self._replayed.clear()
        self._delayed.clear()
        self._next_read = self.cursor.mark_delete + 1
