"""Receiving: one thread owns the subscription's timed receives, and receives only as much as it is allowed.

A batch goes whole to one consumer, so its members are received together, whatever is allowed: a batch of which only a
part was received could not be given back without its finished members coming back too.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pulsar
from loguru import logger

from messaging.client import open_client
from messaging.handshake import QueueTrouble, fields_of, find_trouble
from messaging.topics import request_topic, subscription

if TYPE_CHECKING:
    from config import Settings

RECEIVE_TIMEOUT_MS = 500
RETRY_EACH_S = 3.0
REMIND_EACH = 20  # of these tries
LOOK_AFTER_S = 10.0  # without a message
Key = tuple[int, int, int, int]  # partition, ledger, entry, batch index


@dataclass(frozen=True)
class Received:
    """One message in our hands. `published_ms`: of this publish, by the publisher's clock."""

    key: Key
    message_id: pulsar.MessageId
    payload: bytes
    properties: dict[str, str]
    published_ms: int


@dataclass(frozen=True)
class Subscribed:
    """The subscription stands; messages can come."""


@dataclass(frozen=True)
class ReceivingFailed:
    """A bug of the node: nothing will be received any more."""

    message: str


Notice = Subscribed | QueueTrouble | ReceivingFailed


class Consumer:
    """`tell` is called from the consumer's thread with each Notice; `wake` after each message that has arrived."""

    def __init__(self, settings: Settings, tell: Callable[[Notice], None], wake: Callable[[], None]) -> None:
        self._settings, self._tell, self._wake = settings, tell, wake
        self.client = open_client(settings)
        self._consumer: pulsar.Consumer | None = None
        self._arrived: deque[Received] = deque()
        self._allowed = 0
        self._stopping = False
        self._in_trouble = False
        self._silent_since_s = time.monotonic()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="consumer", daemon=True)

    def start(self) -> None:
        """May be called again: a queue of our own that was started anew has been subscribed to before."""
        if self._thread.ident is None:
            self._thread.start()

    def take(self) -> list[Received]:
        """What has arrived since the last call."""
        with self._changed:
            arrived = list(self._arrived)
            self._arrived.clear()
            return arrived

    def allow(self, count: int) -> None:
        """How many more may be received as of now; those that have arrived and were not taken yet count."""
        with self._changed:
            self._allowed = count - len(self._arrived)
            if self._allowed > 0:
                self._changed.notify()

    def acknowledge(self, received: Received) -> None:
        """Fire and forget: an acknowledgement that gets lost brings the message back, and it is acknowledged again."""
        if self._consumer is None:
            return
        try:
            self._consumer.acknowledge(received.message_id)
        except pulsar.PulsarException as error:
            logger.debug("acknowledgement of {} failed ({}); it will come back", received.key, error)

    def stop_receiving(self) -> None:
        """Does not wait: once `has_stopped`, what was received is in `take()`, each batch whole."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def has_stopped(self) -> bool:
        """One that never got its subscription has nothing to wait for, whatever its thread is in the middle of."""
        return (self._consumer is None or not self._thread.is_alive()) and not self._arrived

    def close(self) -> None:
        """Gives everything unacknowledged to other consumers at once: only with nothing left that runs."""
        try:
            if self._consumer is not None:
                self._consumer.close()
            self.client.close()
        except pulsar.PulsarException as error:
            logger.debug("closing the Pulsar client: {}", error)

    def _run(self) -> None:
        try:
            if not self._subscribe():
                return
            self._tell(Subscribed())
            batch_open = False
            while self._wait_until_allowed(batch_open):
                batch_open = self._receive_one()
        except Exception as bug:
            logger.exception("receiving ended")
            self._tell(ReceivingFailed(repr(bug)))

    def _subscribe(self) -> bool:
        """Try until it stands; False when stopped before. Says at once what is wrong, and reminds each minute."""
        tries = 0
        while not self._stopping:
            trouble = find_trouble(self._settings) or self._open()
            if trouble is None:
                return True
            if tries % REMIND_EACH == 0 or trouble.refused:
                self._tell(trouble)
            tries += 1
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, RETRY_EACH_S)
        return False

    def _open(self) -> QueueTrouble | None:
        model, url = self._settings.model_name, self._settings.pulsar_url
        try:
            self._consumer = self.client.subscribe(
                request_topic(model),
                subscription(model),
                consumer_type=pulsar.ConsumerType.Shared,
                initial_position=pulsar.InitialPosition.Earliest,  # services publish before any node ever subscribed
                receiver_queue_size=1,  # what is prefetched no other node can have
            )
        except pulsar.AuthorizationError as error:
            return QueueTrouble(f"Pulsar at {url} does not allow this token to read {request_topic(model)}: {error}", refused=True)
        except (pulsar.PulsarException, ValueError) as error:
            return QueueTrouble(f"Pulsar at {url} answers, but gives no subscription of {request_topic(model)}: {error}")
        return None

    def _wait_until_allowed(self, batch_open: bool) -> bool:
        """Until a message may be received; False: stop. An open batch is always received to its end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._allowed > 0 or batch_open)
            return batch_open or not self._stopping

    def _look_after_silence(self) -> None:
        """The client says nothing when it loses its broker and waits for it; a look by hand does, once each way."""
        if time.monotonic() - self._silent_since_s < LOOK_AFTER_S:
            return
        self._silent_since_s = time.monotonic()
        trouble = find_trouble(self._settings)
        if trouble is not None and not self._in_trouble:
            self._tell(QueueTrouble(trouble.message))  # never as refused: what was once subscribed may recover
        elif trouble is None and self._in_trouble:
            self._tell(Subscribed())
        self._in_trouble = trouble is not None

    def _receive_one(self) -> bool:
        """Whether a batch is open after it."""
        assert self._consumer is not None
        try:
            message = self._consumer.receive(RECEIVE_TIMEOUT_MS)
        except pulsar.Timeout:
            self._look_after_silence()
            return False  # an open batch that does not go on was cut off by a reconnect; it will come anew
        except pulsar.PulsarException as error:
            logger.warning("receiving failed: {}", error)
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, 1.0)
            return False
        identifier = message.message_id()
        key = (identifier.partition(), identifier.ledger_id(), identifier.entry_id(), identifier.batch_index())
        received = Received(key, identifier, message.data(), _properties(message), message.publish_timestamp())
        with self._changed:
            self._allowed -= 1
            self._arrived.append(received)
        self._silent_since_s = time.monotonic()
        self._wake()
        return bool(0 <= key[3] < batch_size(identifier) - 1)


def _properties(message: pulsar.Message) -> dict[str, str]:
    """None where they are no text: the client cannot read them, and they can come from anyone."""
    try:
        return dict(message.properties())
    except UnicodeDecodeError:
        logger.warning("a message's properties are no UTF-8 and count as none")
        return {}


def batch_size(identifier: pulsar.MessageId) -> int:
    """How many messages the batch has; 0 outside of one. The client tells it only within the serialized id
    (PulsarApi.proto, MessageIdData: field 6)."""
    size = dict(fields_of(identifier.serialize())).get(6, 0)
    return size if isinstance(size, int) else 0
