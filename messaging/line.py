"""One subscribed consumer and the thread that receives from it, and what all lines of a node have in common. What the client
holds already, who has room takes by itself.

A batch goes whole to one consumer, so its members are received together, whatever is allowed: a batch of which only a
part was received could not be given back without its finished members coming back too.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import msgspec
import pulsar
from loguru import logger

from messaging.handshake import fields_of

# An end waits for as long; each costs 0.3 ms of CPU. Never without: that way of the client (3.13) can overlook a message that comes
# at that moment until the next one comes, and where one is prefetched, none does.
RECEIVE_TIMEOUT_MS, QUIET_TIMEOUT_MS = 500, 1000
QUIET_AFTER_S = 5.0
WAIT_S = 0.5
AFTER_FAILURE_S = 1.0
Key = tuple[int, int, int, int]  # partition, ledger, entry, batch index


class Received(msgspec.Struct, frozen=True):
    """One message in our hands. `published_ms`: of this publish, by the publisher's clock."""

    key: Key
    message_id: pulsar.MessageId
    payload: bytes
    properties: dict[str, str]
    published_ms: int


class Inbox:
    """What has arrived and was not taken yet, how much more may, and by which line came what is not acknowledged."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()  # entered for each message: a Condition takes three times as long to enter as its lock
        self._changed = threading.Condition(self._lock)
        self._arrived: deque[Received] = deque()
        self._allowed = 0
        self._held: dict[Key, Line] = {}
        self._stopping = threading.Event()
        self.silent_since_s = time.monotonic()

    def take(self) -> list[Received]:
        with self._lock:
            arrived = list(self._arrived)
            self._arrived.clear()
            return arrived

    def allow(self, count: int) -> None:
        """How many more may be received as of now; those that have arrived and were not taken yet count."""
        with self._lock:
            had_room, self._allowed = self._allowed > 0, count - len(self._arrived)
            if self._allowed > 0 and not had_room:  # else nobody waits for it, and this is called each turn
                self._changed.notify_all()

    def put(self, received: Received, line: Line) -> None:
        self.note(received, line)
        self._wake()

    def note(self, received: Received, line: Line) -> None:
        """As `put`, by who takes it: nobody has to be woken."""
        with self._lock:
            self._allowed -= 1
            self._arrived.append(received)
            self._held[received.key] = line
            self.silent_since_s = time.monotonic()

    def settle(self, key: Key) -> None:
        """It was acknowledged."""
        with self._lock:
            self._held.pop(key, None)

    def holds_any_of(self, line: Line) -> bool:
        with self._lock:
            return any(holder is line for holder in self._held.values())

    def is_empty(self) -> bool:
        return not self._arrived

    def has_room(self) -> bool:
        return self._allowed > 0

    def is_quiet(self) -> bool:
        return time.monotonic() - self.silent_since_s > QUIET_AFTER_S

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def stop(self) -> None:
        self._stopping.set()
        self.nudge()

    def wait_for_room(self, within_s: float, or_else: Callable[[], bool]) -> bool:
        """`or_else`: will do as well, stopping or not; looked at whenever somebody has `nudge`d."""
        with self._changed:
            self._changed.wait_for(lambda: self.stopping or self._allowed > 0 or or_else(), within_s)
            return or_else() or (self._allowed > 0 and not self.stopping)

    def nudge(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def pause(self, pause_s: float) -> bool:
        """False: stopping."""
        return not self._stopping.wait(pause_s)


class Line:
    """Receives what the inbox allows, until it stops or the line is retired.

    client: its own, closed with it; None where it belongs to others too. `retire()`d, it goes on until nothing of it is
    in our hands, and only then closes: closing gives all that is unacknowledged to others at once, running requests too.
    """

    def __init__(self, consumer: pulsar.Consumer, client: pulsar.Client | None, inbox: Inbox, on_bug: Callable[[Exception], None]) -> None:
        self._consumer, self._client, self._inbox, self._on_bug = consumer, client, inbox, on_bug
        self._error = ""
        self._retired = self.closed = False
        self._taking = threading.Lock()  # by who has room: not from a consumer that is just closed
        self._is_flowing = False  # something came the last time that was tried
        self._is_in_receive = self._is_batch_open = False
        self._thread = threading.Thread(target=self._run, name="line", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def retire(self) -> None:
        self._retired = True

    def is_receiving(self) -> bool:
        return self._thread.is_alive()

    def acknowledge(self, received: Received) -> None:
        """Raises pulsar.PulsarException. Of whatever line: the broker of a Shared subscription finds whose it is."""
        self._consumer.acknowledge(received.message_id)

    def receive_prefetched(self) -> None:
        """Take one that the client has already, by who has room now: to wake the line's thread for it, and be woken by it, takes
        longer than all else between one request and the next in a slot. Never waits; the rest of a batch is the thread's."""
        with self._taking:
            if self.closed or self._is_in_receive or self._is_batch_open or not self._is_flowing:
                return
            try:
                received = _received(self._consumer.receive(0))
            except pulsar.PulsarException:  # nothing is there, or there is a trouble, which the line's thread will meet too
                self._is_flowing = False
                return
            self._is_batch_open = _opens_batch(received)
            self._inbox.note(received, self)
        if self._is_batch_open:
            self._inbox.nudge()

    def failure(self) -> str:
        """Whether the broker still knows this consumer, asked over its own connection; "" where it does, or cannot be
        asked. Blocks for the client's operation timeout at most."""
        if self._error:
            return self._error
        try:
            self._consumer.get_last_message_id()
        except pulsar.OperationNotSupported:  # for a partitioned topic
            return ""
        except pulsar.PulsarException as error:
            return type(error).__name__
        return ""

    def answers_within(self, within_s: float) -> bool:
        """As `failure`, but not waited for any longer."""
        answered = threading.Event()

        def ask() -> None:
            if not self.failure():
                answered.set()

        threading.Thread(target=ask, name="look", daemon=True).start()
        return answered.wait(within_s)

    def close(self) -> None:
        """Blocks for as long as the client waits for a queue that is away."""
        self.closed = True
        try:
            self._consumer.close()
            if self._client is not None:
                self._client.close()
        except pulsar.PulsarException as error:
            logger.debug("closing a consumer: {}", error)

    def _run(self) -> None:
        try:
            self._receive()
        except Exception as bug:
            self._on_bug(bug)

    def _receive(self) -> None:
        while self._is_batch_open or not self._inbox.stopping:
            if self._inbox.wait_for_room(WAIT_S, lambda: self._is_batch_open):
                self._receive_one()
            if self._is_over():
                self.close()
                return

    def _is_over(self) -> bool:
        with self._taking:
            is_over = self._retired and not self._is_batch_open and not self._inbox.holds_any_of(self)
            self.closed = self.closed or is_over
        return is_over

    def _receive_one(self) -> None:
        self._is_in_receive = True
        try:
            message = self._consumer.receive(QUIET_TIMEOUT_MS if self._inbox.is_quiet() else RECEIVE_TIMEOUT_MS)
        except pulsar.PulsarException as error:
            self._is_flowing = self._is_batch_open = False  # a batch that does not go on was cut off by a reconnect; it will come anew
            if not isinstance(error, pulsar.Timeout):
                self._on_failure(f"{type(error).__name__}: {error}")
            return
        finally:
            self._is_in_receive = False
        received = _received(message)
        self._error, self._is_flowing, self._is_batch_open = "", True, _opens_batch(received)
        self._inbox.put(received, self)

    def _on_failure(self, why: str) -> None:
        if not self._error:
            logger.debug("receiving failed: {}", why)
        self._error = why
        self._inbox.pause(AFTER_FAILURE_S)


def _received(message: pulsar.Message) -> Received:
    identifier = message.message_id()
    key = (identifier.partition(), identifier.ledger_id(), identifier.entry_id(), identifier.batch_index())
    return Received(key, identifier, message.data(), properties_of(message), message.publish_timestamp())


def _opens_batch(received: Received) -> bool:
    """More of its batch is to come."""
    return bool(0 <= received.key[3] < batch_size(received.message_id) - 1)


def properties_of(message: pulsar.Message) -> dict[str, str]:
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
