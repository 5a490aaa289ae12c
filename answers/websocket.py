"""One WebSocket of ours to somebody's service, under deadlines.

`websockets` speaks the protocol (its Sans-I/O half); the socket and every deadline on it are ours. Its own blocking
client costs two threads a connection and has no deadline for a send.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus, InvalidURI, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import WebSocketURI, parse_uri

from answers.dial import CONNECT_TIMEOUT_S, Dialer
from answers.endpoint import NotDelivered, NoWebSocket, NoWebSocketEver, is_final

WRITE_TIMEOUT_S = 5.0
PONG_TIMEOUT_S = 2.0
CONNECTED_WITHIN_S = 4 * CONNECT_TIMEOUT_S  # two addresses, TLS, and the handshake
SENT_WITHIN_S = 2 * WRITE_TIMEOUT_S  # another's frame first
PING_EACH_S = 2.0
_READ_BYTES = 64 << 10


class FrameSocket:
    """One open WebSocket: its owner sends; another thread may `look`, `ask` or `receive` meanwhile."""

    def __init__(self, url: str, dialer: Dialer) -> None:
        """Connects. Raises NoWebSocket, NotDelivered."""
        self.idle_since_s = 0.0
        self._lock = threading.Lock()
        self._asked: deque[tuple[bytes, float]] = deque()  # pings without their pong, and when they were sent
        self._answered_s = self._looked_s = 0.0
        deadline_s = time.monotonic() + CONNECT_TIMEOUT_S
        uri = _parsed(url)
        self._protocol = ClientProtocol(uri)
        try:
            self._socket = _connect(uri, dialer)
        except (OSError, ValueError) as error:  # ValueError: a host that cannot be a name
            raise NotDelivered(f"{url}: {error}") from None
        try:
            self._handshake(url, deadline_s)
        except OSError as error:
            self.abandon()
            raise NotDelivered(f"{url}: {error}") from None

    def _handshake(self, url: str, deadline_s: float) -> None:
        self._protocol.send_request(self._protocol.connect())
        self._write()
        while self._protocol.state is State.CONNECTING and self._protocol.handshake_exc is None:
            self._read(deadline_s)
        why = self._protocol.handshake_exc
        if why is not None or self._protocol.state is not State.OPEN:
            self.abandon()
            raise _no_websocket(why)(f"{url}: no WebSocket there: {why}")

    # by its owner

    def send(self, text: bytes) -> None:
        """One text frame, out before this returns. Raises OSError when the other side is gone or takes nothing."""
        with self._lock:
            self._put(text)
            self._send_put()

    def put(self, text: bytes) -> None:
        """One text frame that goes out with the next `flush` or `send`, behind those before it. Raises OSError as `send`."""
        with self._lock:
            self._put(text)

    def flush(self) -> None:
        """Raises OSError as `send`."""
        with self._lock:
            self._send_put()

    def confirm(self) -> None:
        """A ping, and its pong: every frame before it was taken. Raises OSError (TimeoutError after 2 s)."""
        deadline_s = time.monotonic() + PONG_TIMEOUT_S
        with self._lock:
            if self._protocol.state is not State.OPEN:
                raise ConnectionResetError("the other side closed the WebSocket before its ping")
            self._ping()
            while self._asked:
                self._read(deadline_s)
                if self._asked and self._protocol.state is not State.OPEN:
                    raise ConnectionResetError("the other side closed the WebSocket before its pong")

    # by another thread

    def look(self) -> bool:
        """Take what has come in (pings to be answered, a close) without waiting for more: is it still open?"""
        return self._unless_busy(self._take_what_came)

    def ask(self) -> bool:
        """As `look`; and a ping, each PING_EACH_S."""
        return self._unless_busy(lambda: self._take_what_came() and self._ping_if_due())

    def silent_for_s(self) -> float:
        """How long a ping had been waiting for any pong when this side last looked, not until now: a process that was
        stopped meanwhile has its pongs still unread. A slow reader answers late, but answers one after the other."""
        try:
            _, asked_s = self._asked[0]
        except IndexError:
            return 0.0
        return self._looked_s - max(asked_s, self._answered_s)

    def receive(self, timeout_s: float) -> list[Frame]:
        """What came in by itself, control frames too; [] where nothing did in time. Raises OSError once it is closed."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            return []
        with self._lock:
            if self._protocol.state is not State.OPEN:
                raise ConnectionResetError("the other side closed the WebSocket")
            return self._read(time.monotonic() + WRITE_TIMEOUT_S)

    def ping(self) -> None:
        """Raises OSError."""
        with self._lock:
            if self._protocol.state is State.OPEN:
                self._ping()

    def _unless_busy(self, do: Callable[[], bool]) -> bool:
        if not self._lock.acquire(blocking=False):
            return True  # it is being written to, which finds out by itself
        try:
            return do()
        except (OSError, ValueError):  # ValueError: closed by its borrower meanwhile
            return False
        finally:
            self._lock.release()

    def _take_what_came(self) -> bool:
        looks_s = time.monotonic()
        while self._protocol.state is State.OPEN and self._has_come():
            self._read(time.monotonic() + WRITE_TIMEOUT_S)
        self._looked_s = looks_s
        return self._protocol.state is State.OPEN

    def _has_come(self) -> bool:
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _ping_if_due(self) -> bool:
        if not self._asked or time.monotonic() - self._asked[-1][1] >= PING_EACH_S:
            self._ping()
        return True

    # its end

    def close(self) -> None:
        with contextlib.suppress(OSError, WebSocketException), self._lock:
            self._protocol.send_close(1000)
            self._write()
        self.abandon()

    def shut(self) -> None:
        """Whoever is about to send or receive finds it closed; its descriptor stays until `abandon`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()

    # with the lock held

    def _put(self, text: bytes) -> None:
        if self._protocol.state is not State.OPEN:
            raise ConnectionResetError("the other side closed the WebSocket")
        self._protocol.send_text(text)

    def _send_put(self) -> None:
        try:
            self._write()
        except OSError:
            # Reset it when it is closed: megabytes that nobody reads would stay with the kernel for minutes.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise

    def _ping(self) -> None:
        now_s = time.monotonic()
        payload = f"{time.monotonic_ns()}".encode()
        self._protocol.send_ping(payload)
        self._asked.append((payload, now_s))
        self._write()

    def _wait_at_most(self, timeout_s: float) -> None:
        if self._socket.gettimeout() != timeout_s:  # setting it is a system call, and this is done for each chunk
            self._socket.settimeout(timeout_s)

    def _write(self) -> None:
        if data := b"".join(self._protocol.data_to_send()):
            self._wait_at_most(WRITE_TIMEOUT_S)
            self._socket.sendall(data)

    def _read(self, deadline_s: float) -> list[Frame]:
        """Wait for bytes, answer what they ask. Raises OSError."""
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 and not self._has_come():
            raise TimeoutError("the other side says nothing")
        self._wait_at_most(max(left_s, 0.001))
        data = self._socket.recv(_READ_BYTES)
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        self._write()
        frames = [event for event in self._protocol.events_received() if isinstance(event, Frame)]
        self._note_pongs({bytes(frame.data) for frame in frames if frame.opcode is Opcode.PONG})
        return frames

    def _note_pongs(self, payloads: set[bytes]) -> None:
        """A pong answers the pings before it too (RFC 6455, 5.5.3)."""
        answered = [place for place, (payload, _) in enumerate(self._asked) if payload in payloads]
        if answered:
            self._answered_s = time.monotonic()
            for _ in range(answered[-1] + 1):
                self._asked.popleft()


def _parsed(url: str) -> WebSocketURI:
    try:
        return parse_uri(url)
    except (InvalidURI, ValueError) as error:
        raise NoWebSocket(f"{url}: {error}") from None


def _no_websocket(why: Exception | None) -> type[NotDelivered]:
    if not isinstance(why, InvalidStatus):
        return NotDelivered
    return NoWebSocketEver if is_final(why.response.status_code) else NoWebSocket


def _connect(uri: WebSocketURI, dialer: Dialer) -> socket.socket:
    """Raises NotAllowed, OSError."""
    plain = dialer.connect(uri.host, uri.port)
    try:
        return dialer.tls.wrap_socket(plain, server_hostname=uri.host) if uri.secure else plain
    except OSError:
        plain.close()
        raise
