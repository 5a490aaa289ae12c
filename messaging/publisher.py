"""Publishing that does not give up: usage records, requests that go back, dead letters.

What is handed in is kept and tried until Pulsar has confirmed it. Producers are opened by a thread of their own, as
opening one blocks while Pulsar is away.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import pulsar
from loguru import logger

RETRY_EACH_S = 1.0
SEND_TIMEOUT_MS = 10_000


@dataclass(frozen=True)
class Publish:
    """`delay_s`: how long the broker holds it back. `subscription`: made first, so that the topic does not forget."""

    topic: str
    payload: bytes
    properties: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    subscription: str | None = None
    batched: bool = False


Confirmed = Callable[[], None]


@dataclass
class _Topic:
    """What one topic has to take. `not_before_s`: monotonic, of the next try; `in_trouble`: said, and not over yet."""

    waiting: deque[tuple[Publish, Confirmed]] = field(default_factory=deque)
    not_before_s: float = 0.0
    producer: pulsar.Producer | None = None
    in_trouble: bool = False


class Publisher:
    """`confirmed` callbacks come from the client's threads: they only hand over."""

    def __init__(self, client: pulsar.Client) -> None:
        self._client = client
        self._topics: dict[str, _Topic] = {}
        self._unconfirmed = 0
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._run, name="publisher", daemon=True).start()

    def publish(self, publish: Publish, confirmed: Confirmed) -> None:
        """Never blocks, never fails: it is confirmed some day."""
        with self._changed:
            self._unconfirmed += 1
            topic = self._topics.setdefault(publish.topic, _Topic())
        if topic.producer is None:
            self._wait(topic, publish, confirmed)
        else:
            self._send(topic, publish, confirmed)

    def unconfirmed(self) -> int:
        """How many publishes Pulsar has not confirmed yet, over all topics."""
        return self._unconfirmed

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _send(self, topic: _Topic, publish: Publish, confirmed: Confirmed) -> None:
        def done(result: pulsar.Result, _: pulsar.MessageId) -> None:
            if result == pulsar.Result.Ok:
                self._on_confirmed(topic, publish, confirmed)
            else:
                self._on_failed(topic, publish, confirmed, result)

        assert topic.producer is not None
        delay = timedelta(seconds=publish.delay_s) if publish.delay_s else None
        try:
            topic.producer.send_async(publish.payload, done, properties=publish.properties or None, deliver_after=delay)
        except pulsar.MessageTooBig:
            logger.error("a message of {:,} bytes for {} is over Pulsar's limit: it is dropped", len(publish.payload), publish.topic)
            self._on_confirmed(topic, publish, confirmed)
        except Exception as error:  # whatever the client makes of one message, the others must not wait for it
            self._on_failed(topic, publish, confirmed, error)

    def _on_confirmed(self, topic: _Topic, publish: Publish, confirmed: Confirmed) -> None:
        with self._changed:
            self._unconfirmed -= 1
            recovered, topic.in_trouble = topic.in_trouble, False
        if recovered:
            logger.info("{} takes messages again", publish.topic)
        confirmed()

    def _on_failed(self, topic: _Topic, publish: Publish, confirmed: Confirmed, why: object) -> None:
        """Said once when it begins. The whole topic pauses: what fails for one fails for all, nearly always."""
        with self._changed:
            known, topic.in_trouble = topic.in_trouble, True
            topic.not_before_s = time.monotonic() + RETRY_EACH_S
        if not known:
            logger.warning("{} takes no messages ({}); they are kept and tried again", publish.topic, why)
        self._wait(topic, publish, confirmed)

    def _wait(self, topic: _Topic, publish: Publish, confirmed: Confirmed) -> None:
        with self._changed:
            topic.waiting.append((publish, confirmed))
            self._changed.notify()

    def _run(self) -> None:
        while (due := self._take_due()) is not None:
            for topic, items in due:
                try:
                    topic.producer = topic.producer or self._open(items[0][0])
                except Exception as error:  # of the client, or a name that it cannot encode
                    for publish, confirmed in items:
                        self._on_failed(topic, publish, confirmed, error)
                    continue
                for publish, confirmed in items:
                    self._send(topic, publish, confirmed)

    def _take_due(self) -> list[tuple[_Topic, list[tuple[Publish, Confirmed]]]] | None:
        """What each topic may be given now, those first that need no opening, as that may block. None: closed."""
        with self._changed:
            while not self._closed:
                now_s = time.monotonic()
                waiting = [topic for topic in self._topics.values() if topic.waiting]
                due = [topic for topic in waiting if topic.not_before_s <= now_s]
                if due:
                    taken = [(topic, list(topic.waiting)) for topic in sorted(due, key=lambda t: t.producer is None)]
                    for topic in due:
                        topic.waiting.clear()
                    return taken
                self._changed.wait(min((topic.not_before_s for topic in waiting), default=now_s + 60) - now_s)
            return None

    def _open(self, publish: Publish) -> pulsar.Producer:
        """Blocks. Raises what the client raises."""
        if publish.subscription:
            self._make_subscription(publish.topic, publish.subscription)
        return self._client.create_producer(
            publish.topic,
            send_timeout_millis=SEND_TIMEOUT_MS,
            # A request that goes back is an entry of its own, which can be acknowledged by itself.
            batching_enabled=publish.batched,
            batching_max_publish_delay_ms=5,
            max_pending_messages=10_000,
        )

    def _make_subscription(self, topic: str, name: str) -> None:
        """Shared, as somebody may be reading it already."""
        kind, start = pulsar.ConsumerType.Shared, pulsar.InitialPosition.Earliest
        self._client.subscribe(topic, name, consumer_type=kind, initial_position=start, receiver_queue_size=1).close()
