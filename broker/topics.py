"""Topics: what is published, handed on to the subscriptions, and deleted once everyone has acknowledged it.

As in Pulsar, a topic is there from its first use on; one without any subscription keeps what it gets for a while only,
and is forgotten when nobody uses it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from broker.cursors import Cursor, CursorChange, runs
from broker.storage import Storage, StoredSubscription, StoredTopic
from broker.subscriptions import Consumer, Entry, Subscription
from broker.writer import (
    Append,
    Barrier,
    CreateSubscription,
    CreateTopic,
    DeleteEntries,
    DeleteSubscription,
    DeleteTopic,
    MoveCursor,
    TopicRow,
)

NAMESPACE = "public/default"
PREFIX = f"persistent://{NAMESPACE}/"
KEPT_WITHOUT_SUBSCRIPTION = 50_000  # entries; Pulsar keeps a ledger's worth, which has as many
FORGOTTEN_AFTER_S = 60.0  # as Pulsar's brokerDeleteInactiveTopicsFrequencySeconds

Told = Callable[[bool], None]


class NoSuchTopic(Exception):
    """The message is Pulsar's."""


class InvalidTopic(Exception):
    """Not a name that this broker can serve."""


def topic_name(given: str) -> str:
    """The full name. Raises InvalidTopic, and NoSuchTopic for other namespaces than public/default."""
    if given.startswith("non-persistent://"):
        raise InvalidTopic("Non-persistent topics are not supported by the embedded broker")
    if not given.startswith("persistent://"):
        given = PREFIX + given if "/" not in given else f"persistent://{given}"
    tenant, _, rest = given.removeprefix("persistent://").partition("/")
    namespace, _, local = rest.partition("/")
    if not re.fullmatch(r"[^/\x00-\x1f]{1,400}", local):
        raise InvalidTopic(f"Invalid topic name: {given[:200]}")
    if f"{tenant}/{namespace}" != NAMESPACE:
        raise NoSuchTopic("Namespace not found")
    return given


@dataclass(eq=False)
class Producer:
    """`generated`: the name is the broker's own."""

    name: str
    producer_id: int
    epoch: int
    generated: bool
    owner: object
    address: str
    client_version: str
    published_messages: int = 0
    connected_at_s: float = field(default_factory=time.time)


@dataclass
class Counters:
    """Since the start, for the admin's stats."""

    messages_in: int = 0
    bytes_in: int = 0
    messages_out: int = 0
    bytes_out: int = 0


@dataclass(eq=False)
class Attached:
    """A subscription of a topic. `subscription_id` None: of a reader, not stored."""

    subscription: Subscription
    subscription_id: int | None

    @property
    def durable(self) -> bool:
        return self.subscription_id is not None


@dataclass
class _View:
    """A topic's stored entries, as its subscriptions read them."""

    topic_id: int
    storage: Storage
    last_entry: int

    def read(self, first: int, max_entries: int, max_bytes: int) -> list[Entry]:
        return self.storage.read(self.topic_id, first, self.last_entry, max_entries, max_bytes)

    def fetch(self, numbers: Sequence[int]) -> list[Entry]:
        return self.storage.fetch(self.topic_id, numbers)


@dataclass(eq=False)
class Topic:
    """`first_entry`: before it nothing is left; `last_messages`: how many messages the last entry has, 0 where it is gone."""

    row: TopicRow
    view: _View
    wake: Callable[[Subscription], None]
    first_entry: int = 0
    last_messages: int = 0
    producers: dict[str, Producer] = field(default_factory=dict)
    attached: dict[str, Attached] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    idle_since_s: float | None = None

    @property
    def topic_id(self) -> int:
        """Its ledger, in Pulsar's words."""
        return self.row.topic_id

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def last_entry(self) -> int:
        return self.view.last_entry

    @property
    def has_durable(self) -> bool:
        return any(attached.durable for attached in self.attached.values())

    @property
    def unused(self) -> bool:
        return not self.producers and not self.attached

    def append(self, messages: int, deliver_at_ms: int, published_ms: int, body: bytes, finish: Callable[[Append, bool], None]) -> None:
        """`finish` is told of the commit, after the subscriptions."""

        def committed(append: Append, stored: bool) -> None:
            if stored:
                self._committed(append)
            finish(append, stored)

        self.view.storage.submit(Append(self.row, messages, deliver_at_ms, published_ms, body, committed))

    def _committed(self, append: Append) -> None:
        self.view.last_entry, self.last_messages = append.number, append.messages
        self.counters.messages_in += append.messages
        self.counters.bytes_in += len(append.body)
        entry = Entry(append.number, append.messages, append.deliver_at_ms, append.body)
        for attached in self.attached.values():
            attached.subscription.offer(entry)
            self.wake(attached.subscription)

    def attach(self, name: str, mark_delete: int, subscription_id: int | None) -> Attached:
        """A new subscription; what comes after `mark_delete` is for it."""
        return self._attach(StoredSubscription(subscription_id or 0, name, mark_delete, {}, {}), durable=subscription_id is not None)

    def restore(self, stored: StoredSubscription) -> None:
        self._attach(stored, durable=True)

    def _attach(self, stored: StoredSubscription, *, durable: bool) -> Attached:
        cursor = Cursor(stored.mark_delete, stored.ranges, stored.partials)
        subscription = Subscription(stored.name, cursor, self.view)
        self.attached[stored.name] = Attached(subscription, stored.subscription_id if durable else None)
        return self.attached[stored.name]

    def consumer_left(self, attached: Attached, consumer: Consumer) -> None:
        """A reader's subscription ends with it."""
        subscription = attached.subscription
        subscription.remove(consumer)
        if not attached.durable and not subscription.consumers:
            self.attached.pop(subscription.name, None)
        else:
            self.wake(subscription)

    def flush(self, told: Told = lambda committed: None) -> None:
        """Stores what was acknowledged since the last time, and deletes what nobody needs."""
        cursors = [attached.subscription.cursor for attached in self.attached.values()]
        acked: list[int] = []
        for attached in self.attached.values():
            acked += attached.subscription.newly_acked
            attached.subscription.newly_acked = []
            self._store_cursor(attached)
        self._delete_acked([entry for entry in set(acked) if all(cursor.is_acked(entry) for cursor in cursors)])
        self.view.storage.submit(Barrier(told))

    def _store_cursor(self, attached: Attached) -> None:
        cursor = attached.subscription.cursor
        change = cursor.take_changes()
        if change is None or attached.subscription_id is None:
            return

        def told(committed: bool, change: CursorChange = change) -> None:
            if not committed:
                cursor.not_stored(change)

        self.view.storage.submit(MoveCursor(told, attached.subscription_id, change))

    def _delete_acked(self, everywhere: list[int]) -> None:
        """`everywhere`: entries that every subscription has acknowledged."""
        if self.has_durable:
            oldest = min(attached.subscription.cursor.mark_delete for attached in self.attached.values())
        else:
            oldest, everywhere = self.last_entry - KEPT_WITHOUT_SUBSCRIPTION, []
        found = runs(entry for entry in everywhere if entry > oldest)
        if oldest >= self.first_entry:
            found.append((self.first_entry, oldest))
            self.first_entry = oldest + 1
        if found:
            if any(first <= self.last_entry <= last for first, last in found):
                self.last_messages = 0
            self.view.storage.submit(DeleteEntries(lambda committed: None, self.topic_id, found))


class Topics:
    """All topics. wake: called with each subscription that may have something to hand out."""

    def __init__(self, storage: Storage, wake: Callable[[Subscription], None]) -> None:
        self._storage, self._wake = storage, wake
        self._by_name: dict[str, Topic] = {}
        self._changed: set[Topic] = set()
        self._last_topic_id, self._last_subscription_id = storage.last_topic_id, storage.last_subscription_id
        self._generated_names = 0
        for stored in storage.topics:
            self._restore(stored)

    def names(self) -> list[str]:
        return sorted(self._by_name)

    def find(self, name: str) -> Topic | None:
        return self._by_name.get(name)

    def get_or_create(self, name: str) -> Topic:
        topic = self._by_name.get(name)
        if topic is None:
            self._last_topic_id += 1
            topic = self._add(self._last_topic_id, name, next_entry=0)
            self._storage.submit(CreateTopic(lambda committed: None, topic.row))
        return topic

    def generate_name(self) -> str:
        """For a producer: never used before, not even before a restart."""
        self._generated_names += 1
        return f"standalone-{self._storage.starts}-{self._generated_names}"

    def subscribe(self, topic: Topic, name: str, *, earliest: bool, told: Told) -> Attached:
        """A new durable subscription; `told` when it is stored."""
        self._last_subscription_id += 1
        mark_delete = topic.first_entry - 1 if earliest else topic.last_entry
        attached = topic.attach(name, mark_delete, self._last_subscription_id)
        self._storage.submit(CreateSubscription(told, self._last_subscription_id, topic.row, name, mark_delete))
        return attached

    def unsubscribe(self, topic: Topic, attached: Attached, told: Told) -> None:
        """A durable one; `told` when it is gone for good."""
        del topic.attached[attached.subscription.name]
        if attached.subscription_id is not None:
            self._storage.submit(DeleteSubscription(told, attached.subscription_id))
        self.acked(topic)

    def acked(self, topic: Topic) -> None:
        """Something was acknowledged: the next `flush` stores it."""
        self._changed.add(topic)

    def flush(self) -> None:
        changed, self._changed = self._changed, set()
        for topic in changed:
            topic.flush()

    def forget_unused(self, now_s: float) -> None:
        """Call it each minute or so. `now_s`: monotonic."""
        for topic in list(self._by_name.values()):
            if not topic.unused:
                topic.idle_since_s = None
                if not topic.has_durable:
                    self._changed.add(topic)
            elif topic.idle_since_s is None:
                topic.idle_since_s = now_s
            elif now_s - topic.idle_since_s >= FORGOTTEN_AFTER_S:
                del self._by_name[topic.name]
                self._storage.submit(DeleteTopic(lambda committed: None, topic.topic_id))

    def _restore(self, stored: StoredTopic) -> None:
        topic = self._add(stored.topic_id, stored.name, stored.next_entry)
        topic.first_entry, topic.last_messages = stored.first_entry, stored.last_messages
        for subscription in stored.subscriptions:
            topic.restore(subscription)

    def _add(self, topic_id: int, name: str, next_entry: int) -> Topic:
        topic = Topic(TopicRow(topic_id, name), _View(topic_id, self._storage, next_entry - 1), self._wake)
        self._by_name[name] = topic
        return topic
