"""Receiving from the model's subscription, and noticing when nothing can come any more.

The Pulsar client says nothing when it loses its broker, takes up to a minute to see that a connection is half open,
waits up to a minute between two tries to reconnect, and after a fault of the broker may stay silent for ever. So the
subscription is looked after: asked over its own connection whenever it is silent, and opened anew, by a client of its
own, where it does not answer though Pulsar does, where a trouble is over, and now and then after long silence.

The old consumer goes on until nothing that came by it is unacknowledged. Acknowledgements go by the newest one: the
broker of a Shared subscription finds whose message it is, and the old connection may be the broken one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pulsar
from loguru import logger

from messaging.client import open_client
from messaging.handshake import QueueTrouble, find_trouble
from messaging.line import Inbox, Line, Received
from messaging.topics import request_topic, subscription

if TYPE_CHECKING:
    from config import Settings

RETRY_EACH_S = 3.0
REMIND_EACH = 20  # of these tries
TICK_S = 1.0
LOOK_AFTER_S = 5.0  # without a message
ANSWERS_WITHIN_S = 1.0  # else it is looked at by hand: at each look that would fill the broker's log with connections
RENEW_AFTER_S, RENEW_LATEST_S = 300.0, 3600.0  # of silence; twice as long each time that no message came after it
MOST_LINES = 4  # each holds a prefetched message that no other node can have
NOT_YET = "not subscribed yet"


@dataclass(frozen=True)
class Subscribed:
    """The subscription stands; messages can come."""


@dataclass(frozen=True)
class ReceivingFailed:
    """A bug of the node: nothing will be received any more."""

    message: str


Notice = Subscribed | QueueTrouble | ReceivingFailed


class Consumer:
    """`tell` is called from the consumer's threads with each Notice; `wake` after each message that has arrived
    unasked (`allow` says what else has).

    `client`: for others to publish with; it lives until `close`."""

    def __init__(self, settings: Settings, tell: Callable[[Notice], None], wake: Callable[[], None]) -> None:
        self._settings, self._tell = settings, tell
        self.client = open_client(settings)
        self._inbox = Inbox(wake)
        self._lines: list[Line] = []  # the newest last
        self._trouble: QueueTrouble | None = QueueTrouble(NOT_YET)
        self._looked_at_s = self._renewed_at_s = 0.0
        self._renew_after_s = RENEW_AFTER_S
        self._thread = threading.Thread(target=self._run, name="consumer", daemon=True)

    def start(self) -> None:
        """May be called again: a queue of our own that was started anew has been subscribed to before."""
        if self._thread.ident is None:
            self._thread.start()

    def trouble(self) -> str:
        """Why no message can come, for humans; "" where one can."""
        return self._trouble.message if self._trouble else ""

    def take(self) -> list[Received]:
        """What has arrived since the last call."""
        return self._inbox.take()

    def allow(self, count: int) -> bool:
        """How many more may be received as of now; those that have arrived and were not taken yet count. Returns whether any
        has: what the client holds already comes at once."""
        if count > 0 and self._lines and self._inbox.is_empty() and not self._inbox.has_room():
            self._lines[-1].receive_prefetched()
        self._inbox.allow(count)
        return not self._inbox.is_empty()

    def acknowledge(self, received: Received) -> None:
        """Fire and forget: an acknowledgement that gets lost brings the message back, and it is acknowledged again."""
        try:
            if self._lines:
                self._lines[-1].acknowledge(received)
        except pulsar.PulsarException as error:
            logger.debug("acknowledgement of {} failed ({}); it will come back", received.key, error)
        self._inbox.settle(received.key)

    def stop_receiving(self) -> None:
        """Does not wait: once `has_stopped`, what was received is in `take()`, each batch whole."""
        self._inbox.stop()

    def has_stopped(self) -> bool:
        """One that never got its subscription has nothing to wait for, whatever its thread is in the middle of."""
        return not any(line.is_receiving() for line in self._lines) and self._inbox.is_empty()

    def close(self) -> None:
        """Gives everything unacknowledged to other consumers at once: only with nothing left that runs."""
        for line in self._lines:
            line.close()
        try:
            self.client.close()
        except pulsar.PulsarException as error:
            logger.debug("closing the Pulsar client: {}", error)

    def _run(self) -> None:
        try:
            if self._subscribe():
                self._on_recovery()
                self._watch()
        except Exception as bug:
            self._on_bug(bug)

    def _on_bug(self, bug: Exception) -> None:
        logger.opt(exception=bug).error("receiving ended")
        self._tell(ReceivingFailed(repr(bug)))

    # the first subscription

    def _subscribe(self) -> bool:
        """Try until it stands; False when stopped before. Says at once what is wrong, and reminds each minute."""
        tries = 0
        while not self._inbox.stopping:
            trouble = find_trouble(self._settings) or self._open(self.client)
            if trouble is None:
                return True
            self._trouble = trouble
            if tries % REMIND_EACH == 0 or trouble.refused:
                self._tell(trouble)
            tries += 1
            self._inbox.pause(RETRY_EACH_S)
        return False

    def _open(self, client: pulsar.Client) -> QueueTrouble | None:
        """A new line beside those there are, which retire."""
        model, url = self._settings.model_name, self._settings.pulsar_url
        try:
            consumer = client.subscribe(
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
        self._add(Line(consumer, None if client is self.client else client, self._inbox, self._on_bug))
        return None

    def _add(self, line: Line) -> None:
        for old in self._lines:
            old.retire()
        self._lines = [old for old in self._lines if not old.closed] + [line]
        line.start()

    # looking after it

    def _watch(self) -> None:
        while self._inbox.pause(TICK_S):
            if self._is_look_due(time.monotonic()):
                self._look()
                self._looked_at_s = time.monotonic()

    def _is_look_due(self, now_s: float) -> bool:
        if self._trouble:
            return now_s - self._looked_at_s >= RETRY_EACH_S
        return self._inbox.has_room() and now_s - max(self._looked_at_s, self._inbox.silent_since_s) >= LOOK_AFTER_S

    def _look(self) -> None:
        if not self._trouble and self._lines[-1].answers_within(ANSWERS_WITHIN_S):
            if self._is_silent_for_long(time.monotonic()):
                self._renew()
            return
        trouble = find_trouble(self._settings) or self._repair()
        if trouble is not None:
            self._on_trouble(trouble)
        elif self._trouble:
            self._on_recovery()

    def _repair(self) -> QueueTrouble | None:
        """What there is to do where Pulsar answers."""
        failure = "" if self._trouble else self._lines[-1].failure()
        if failure:
            logger.warning("Pulsar answers, but not the subscription ({}): it is opened anew", failure)
        return self._renew() if self._trouble or failure else None

    def _is_silent_for_long(self, now_s: float) -> bool:
        silent_since_s = self._inbox.silent_since_s
        if silent_since_s > self._renewed_at_s:
            self._renew_after_s = RENEW_AFTER_S
        return now_s - max(silent_since_s, self._renewed_at_s) >= self._renew_after_s

    def _renew(self) -> QueueTrouble | None:
        """By a client of its own: another consumer of an old one would share its connection, which may be broken."""
        self._renewed_at_s = time.monotonic()
        self._renew_after_s = min(2 * self._renew_after_s, RENEW_LATEST_S)
        if sum(not line.closed for line in self._lines) >= MOST_LINES:
            return self._wait_for_client()
        client = open_client(self._settings)
        trouble = self._open(client)
        if trouble is not None:
            client.close()
        return trouble

    def _wait_for_client(self) -> QueueTrouble | None:
        """Requests have been running over several troubles; the client reconnects by itself, if later."""
        if self._lines[-1].failure():
            return QueueTrouble(f"Pulsar at {self._settings.pulsar_url} answers, but not the subscription of {self._settings.model_name}")
        return None

    def _on_trouble(self, trouble: QueueTrouble) -> None:
        """Said once, and when it has become another. Never as refused: what was once subscribed may recover."""
        is_known = self._trouble is not None and self._trouble.refused == trouble.refused
        self._trouble = trouble
        if not is_known:
            self._tell(QueueTrouble(trouble.message))

    def _on_recovery(self) -> None:
        self._trouble = None
        self._tell(Subscribed())
