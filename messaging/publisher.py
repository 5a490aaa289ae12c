"""Publishing that does not give up: usage records, requests that go back, dead letters.

What is handed in is kept and tried until Pulsar has confirmed it. Producers are opened by a thread of their own, as
opening one blocks while Pulsar is away.
"""

from __future__ import annotations

import threading
import time
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


class Publisher:
    """`confirmed` callbacks come from the client's threads: they only hand over."""

    def __init__(self, client: pulsar.Client) -> None:
        self._client = client
        self._producers: dict[str, pulsar.Producer] = {}
        self._waiting: list[tuple[float, Publish, Confirmed]] = []  # with the monotonic time of their next try
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._run, name="publisher", daemon=True).start()

    def publish(self, publish: Publish, confirmed: Confirmed) -> None:
        """Never blocks, never fails: it is confirmed some day."""
        producer = self._producers.get(publish.topic)
        if producer is None:
            self._later(publish, confirmed, 0.0)
        else:
            self._send(producer, publish, confirmed)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _send(self, producer: pulsar.Producer, publish: Publish, confirmed: Confirmed) -> None:
        def done(result: pulsar.Result, _: pulsar.MessageId) -> None:
            if result == pulsar.Result.Ok:
                confirmed()
            else:
                failed(result)

        def failed(why: object) -> None:
            logger.debug("publishing to {}: {}; it will be tried again", publish.topic, why)
            self._later(publish, confirmed, RETRY_EACH_S)

        delay = timedelta(seconds=publish.delay_s) if publish.delay_s else None
        try:
            producer.send_async(publish.payload, done, properties=publish.properties or None, deliver_after=delay)
        except pulsar.MessageTooBig:
            logger.error("a message of {:,} bytes for {} is over Pulsar's limit: it is dropped", len(publish.payload), publish.topic)
            confirmed()
        except pulsar.PulsarException as error:
            failed(error)

    def _later(self, publish: Publish, confirmed: Confirmed, pause_s: float) -> None:
        with self._changed:
            self._waiting.append((time.monotonic() + pause_s, publish, confirmed))
            self._changed.notify()

    def _run(self) -> None:
        while (due := self._take_due()) is not None:
            for publish, confirmed in due:
                if producer := self._producers.get(publish.topic) or self._open(publish):
                    self._send(producer, publish, confirmed)
                else:
                    self._later(publish, confirmed, RETRY_EACH_S)

    def _take_due(self) -> list[tuple[Publish, Confirmed]] | None:
        """None: closed."""
        with self._changed:
            while not self._closed:
                now_s = time.monotonic()
                due = [(publish, confirmed) for at_s, publish, confirmed in self._waiting if at_s <= now_s]
                if due:
                    self._waiting = [item for item in self._waiting if item[0] > now_s]
                    return due
                self._changed.wait(min((item[0] for item in self._waiting), default=now_s + 60) - now_s)
            return None

    def _open(self, publish: Publish) -> pulsar.Producer | None:
        try:
            if publish.subscription:
                self._make_subscription(publish.topic, publish.subscription)
            producer = self._client.create_producer(
                publish.topic,
                send_timeout_millis=SEND_TIMEOUT_MS,
                # A request that goes back is an entry of its own, which can be acknowledged by itself.
                batching_enabled=publish.batched,
                batching_max_publish_delay_ms=5,
                max_pending_messages=10_000,
            )
        except pulsar.PulsarException as error:
            logger.debug("no producer for {}: {}; it will be tried again", publish.topic, error)
            return None
        self._producers[publish.topic] = producer
        return producer

    def _make_subscription(self, topic: str, name: str) -> None:
        """Shared, as somebody may be reading it already."""
        kind, start = pulsar.ConsumerType.Shared, pulsar.InitialPosition.Earliest
        self._client.subscribe(topic, name, consumer_type=kind, initial_position=start, receiver_queue_size=1).close()
