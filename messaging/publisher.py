"""Publishing that does not give up: usage records, requests that go back, dead letters.

What is handed in is kept and tried until Pulsar has confirmed it. Each topic has a thread of its own, as opening a
producer blocks for as long as Pulsar lets it, and a node publishes to three topics or four.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta

import msgspec
import pulsar
from loguru import logger

from messaging.client import settle_thread

RETRY_EACH_S = 1.0
SEND_TIMEOUT_MS = 10_000
_PRODUCER_ENDED = {"AlreadyClosed", "ProducerFenced", "ProducerNotInitialized", "TopicTerminated", "TopicNotFound"}


class Publish(msgspec.Struct, frozen=True):
    """`delay_s`: how long the broker holds it back. `subscription`: made first, so that the topic does not forget."""

    topic: str
    payload: bytes
    properties: dict[str, str] = {}
    delay_s: float = 0.0
    subscription: str | None = None
    batched: bool = False


Confirmed = Callable[[], None]


class _Item(msgspec.Struct, eq=False):
    """`is_odd`: the client raised something on it that no queue's state explains, and this was said."""

    publish: Publish
    confirmed: Confirmed
    is_odd: bool = False


class Publisher:
    """`confirmed` callbacks come from the client's threads: they only hand over."""

    def __init__(self, client: pulsar.Client) -> None:
        self._client = client
        self._topics: dict[str, _Topic] = {}
        self._lock = threading.Lock()

    def publish(self, publish: Publish, confirmed: Confirmed) -> None:
        """Never blocks, never fails: it is confirmed some day."""
        with self._lock:
            topic = self._topics.get(publish.topic)
            if topic is None:
                topic = self._topics[publish.topic] = _Topic(publish, self._client)
        topic.take(_Item(publish, confirmed))

    def unconfirmed(self) -> int:
        """How many publishes Pulsar has not confirmed yet, over all topics."""
        with self._lock:
            return sum(topic.unconfirmed for topic in self._topics.values())

    def close(self) -> None:
        with self._lock:
            for topic in self._topics.values():
                topic.close()


class _Topic:
    """What one topic has to take, and the thread that opens it and tries again what it did not take."""

    def __init__(self, first: Publish, client: pulsar.Client) -> None:
        self.unconfirmed = 0
        self._first, self._client = first, client
        self._producer: pulsar.Producer | None = None
        self._waiting: deque[_Item] = deque()
        self._not_before_s = 0.0
        self._in_trouble = False
        self._closed = False
        self._lock = threading.Lock()  # by itself, as in line.py, where nobody waits
        self._changed = threading.Condition(self._lock)
        threading.Thread(target=self._run, name="publisher", daemon=True).start()

    def take(self, item: _Item) -> None:
        with self._lock:
            self.unconfirmed += 1
            producer = self._producer
            if producer is None:
                self._waiting.append(item)
                self._changed.notify()
        if producer is not None:
            self._send(producer, item)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        while self._wait_until_due():
            try:
                self._send_waiting()
            except pulsar.PulsarException as error:
                self._on_trouble(str(error))
            except Exception as error:  # a bug of ours, or a name that the client cannot encode
                self._on_trouble(f"{type(error).__name__}: {error}", error)

    def _wait_until_due(self) -> bool:
        """False: closed."""
        with self._changed:
            while not self._closed:
                left_s = self._not_before_s - time.monotonic()
                if self._waiting and left_s <= 0:
                    return True
                self._changed.wait(left_s if self._waiting else None)
            return False

    def _send_waiting(self) -> None:
        """Each once, so that what fails again waits its pause. Raises what the client raises on opening."""
        if self._producer is None:
            self._producer = self._open()
        for _ in range(len(self._waiting)):
            producer = self._producer
            if producer is None:  # it ended meanwhile
                return
            self._send(producer, self._waiting.popleft())

    def _send(self, producer: pulsar.Producer, item: _Item) -> None:
        publish = item.publish
        delay = timedelta(seconds=publish.delay_s) if publish.delay_s else None
        try:
            producer.send_async(
                publish.payload, lambda result, _: self._on_result(producer, item, result.name),
                properties=publish.properties or None, deliver_after=delay,
            )  # fmt: skip
        except pulsar.PulsarException as error:
            self._on_result(producer, item, type(error).__name__)
        except Exception as error:  # a property that the client cannot encode, or the like: its own matter, not the topic's
            self._on_odd(item, error)

    def _on_result(self, producer: pulsar.Producer, item: _Item, result: str) -> None:
        """`result`: Pulsar's name for it. Comes from the client's threads too, which no exception may end."""
        settle_thread()
        if result == "Ok":
            self._on_confirmed(item)
        elif result == "MessageTooBig":
            size_bytes = len(item.publish.payload)
            logger.error("a message of {:,} bytes for {} is over Pulsar's limit: it is dropped", size_bytes, item.publish.topic)
            self._settle(item)
        else:
            self._on_trouble(result)
            self._try_again(item)
            if result in _PRODUCER_ENDED and self._producer is producer:
                self._producer = None

    def _on_confirmed(self, item: _Item) -> None:
        with self._lock:
            recovered, self._in_trouble = self._in_trouble, False
        if recovered:
            logger.info("{} takes messages again; {} are waiting", item.publish.topic, self.unconfirmed)
        self._settle(item)

    def _settle(self, item: _Item) -> None:
        with self._lock:
            self.unconfirmed -= 1
        try:
            item.confirmed()
        except Exception:
            logger.exception("a confirmation for {} hit a bug of the node", item.publish.topic)

    def _on_trouble(self, why: str, bug: Exception | None = None) -> None:
        """Said once when it begins. The whole topic pauses: what fails for one fails for all, nearly always."""
        with self._changed:
            known, self._in_trouble = self._in_trouble, True
            self._not_before_s = time.monotonic() + RETRY_EACH_S
        if not known:
            words = "{} takes no messages ({}); {} are waiting, and are tried again"
            logger.opt(exception=bug).warning(words, self._first.topic, why, self.unconfirmed)

    def _on_odd(self, item: _Item, error: Exception) -> None:
        known, item.is_odd = item.is_odd, True
        if not known:
            logger.opt(exception=error).error("a message for {} cannot be sent; it is kept and tried again", item.publish.topic)
        with self._changed:
            self._not_before_s = time.monotonic() + RETRY_EACH_S
        self._try_again(item)

    def _try_again(self, item: _Item) -> None:
        with self._changed:
            self._waiting.append(item)
            self._changed.notify()

    def _open(self) -> pulsar.Producer:
        """Blocks. Raises what the client raises."""
        if self._first.subscription:
            self._make_subscription(self._first.topic, self._first.subscription)
        return self._client.create_producer(
            self._first.topic,
            send_timeout_millis=SEND_TIMEOUT_MS,
            # A request that goes back is an entry of its own, which can be acknowledged by itself.
            batching_enabled=self._first.batched,
            batching_max_publish_delay_ms=5,
            max_pending_messages=10_000,
        )

    def _make_subscription(self, topic: str, name: str) -> None:
        """Shared, as somebody may be reading it already."""
        kind, start = pulsar.ConsumerType.Shared, pulsar.InitialPosition.Earliest
        self._client.subscribe(topic, name, consumer_type=kind, initial_position=start, receiver_queue_size=1).close()
