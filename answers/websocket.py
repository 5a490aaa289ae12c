"""Streams: text frames on a WebSocket, one stream at a time, over pooled sockets.

`websockets` speaks the protocol (its Sans-I/O half); the socket and every deadline on it are ours. Its own blocking
client costs two threads a connection and has no deadline for a send.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from functools import cached_property

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidURI, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import WebSocketURI, parse_uri

from answers.endpoint import NotDelivered, websocket_url

CONNECT_TIMEOUT_S = 5.0
WRITE_TIMEOUT_S = 5.0
PONG_TIMEOUT_S = 2.0
IDLE_KEPT_S = 10.0  # below the 20 s after which common servers give up on a silent client
LOOK_EACH_S = 5.0  # also below those 20 s, within which their pings want a pong
_READ_BYTES = 64 << 10


class FrameSocket:
    """One open WebSocket: its borrower sends, and `look` may be called from another thread meanwhile."""

    def __init__(self, url: str, tls: Callable[[], ssl.SSLContext]) -> None:
        """Connects. Raises NotDelivered."""
        self.idle_since_s = 0.0
        self._lock = threading.Lock()
        try:
            uri = parse_uri(url)
            self._protocol = ClientProtocol(uri)
            self._socket = _connect(uri, tls)
        except (OSError, InvalidURI, ValueError) as error:
            raise NotDelivered(f"{url}: {error}") from None
        try:
            self._handshake(url)
        except OSError as error:
            self.abandon()
            raise NotDelivered(f"{url}: {error}") from None

    def _handshake(self, url: str) -> None:
        self._protocol.send_request(self._protocol.connect())
        self._write()
        deadline_s = time.monotonic() + CONNECT_TIMEOUT_S
        while self._protocol.state is State.CONNECTING and self._protocol.handshake_exc is None:
            self._read(deadline_s)
        if self._protocol.handshake_exc is not None or self._protocol.state is not State.OPEN:
            self.abandon()
            raise NotDelivered(f"{url}: no WebSocket there: {self._protocol.handshake_exc}")

    def send(self, text: bytes) -> None:
        """One text frame, out before this returns. Raises OSError when the other side is gone or takes nothing."""
        with self._lock:
            if self._protocol.state is not State.OPEN:
                raise ConnectionResetError("the other side closed the WebSocket")
            self._protocol.send_text(text)
            try:
                self._write()
            except OSError:
                # Reset it when it is closed: megabytes that nobody reads would stay with the kernel for minutes.
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raise

    def confirm(self) -> None:
        """A ping, and its pong: every frame before it was taken. Raises OSError (TimeoutError after 2 s)."""
        payload = f"{time.monotonic_ns()}".encode()
        deadline_s = time.monotonic() + PONG_TIMEOUT_S
        with self._lock:
            if self._protocol.state is not State.OPEN:
                raise ConnectionResetError("the other side closed the WebSocket before its ping")
            self._protocol.send_ping(payload)
            self._write()
            while payload not in self._read(deadline_s):
                if self._protocol.state is not State.OPEN:
                    raise ConnectionResetError("the other side closed the WebSocket before its pong")

    def look(self) -> bool:
        """Take what has come in (pings to be answered, a close) without waiting for more: is it still open?"""
        if not self._lock.acquire(blocking=False):
            return True  # it is being written to, which finds out by itself
        try:
            poll = select.poll()
            poll.register(self._socket.fileno(), select.POLLIN)
            while self._protocol.state is State.OPEN and poll.poll(0):
                self._read(time.monotonic() + WRITE_TIMEOUT_S)
            return self._protocol.state is State.OPEN
        except (OSError, ValueError):  # ValueError: closed by its borrower meanwhile
            return False
        finally:
            self._lock.release()

    def close(self) -> None:
        with contextlib.suppress(OSError, WebSocketException), self._lock:
            self._protocol.send_close(1000)
            self._write()
        self.abandon()

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()

    def _wait_at_most(self, timeout_s: float) -> None:
        if self._socket.gettimeout() != timeout_s:  # setting it is a system call, and this is done for each chunk
            self._socket.settimeout(timeout_s)

    def _write(self) -> None:
        self._wait_at_most(WRITE_TIMEOUT_S)
        for data in self._protocol.data_to_send():
            if data:
                self._socket.sendall(data)

    def _read(self, deadline_s: float) -> set[bytes]:
        """Wait for bytes, answer what they ask; returns the payloads of pongs. Raises OSError."""
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the other side says nothing")
        self._wait_at_most(left_s)
        data = self._socket.recv(_READ_BYTES)
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        self._write()
        events = self._protocol.events_received()
        return {bytes(event.data) for event in events if isinstance(event, Frame) and event.opcode is Opcode.PONG}


def _connect(uri: WebSocketURI, tls: Callable[[], ssl.SSLContext]) -> socket.socket:
    """Raises OSError."""
    plain = socket.create_connection((uri.host, uri.port), CONNECT_TIMEOUT_S)
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return tls().wrap_socket(plain, server_hostname=uri.host) if uri.secure else plain
    except OSError:
        plain.close()
        raise


class SocketPool:
    """Rested sockets by endpoint, and a thread that looks after all. Thread-safe."""

    def __init__(self, ca_bundle: str | None) -> None:
        self._ca_bundle = ca_bundle
        self._idle: dict[str, list[FrameSocket]] = defaultdict(list)
        self._lent: set[FrameSocket] = set()
        self._lock = threading.Lock()
        self._is_looked_after = False

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """Made when first needed: reading the certificates takes longer than all else in a child's start."""
        return ssl.create_default_context(cafile=self._ca_bundle)

    def borrow(self, endpoint: str) -> FrameSocket:
        """A socket for one stream. Raises NotDelivered."""
        try:
            url = websocket_url(endpoint)
        except ValueError as error:
            raise NotDelivered(f"{endpoint!r}: {error}") from None
        found = self._rested(url) or FrameSocket(url, lambda: self._tls)
        with self._lock:
            self._lent.add(found)
            if not self._is_looked_after:
                self._is_looked_after = True
                threading.Thread(target=self._look_after, name="sockets", daemon=True).start()
        return found

    def _rested(self, url: str) -> FrameSocket | None:
        while rested := self._take(url):
            if time.monotonic() - rested.idle_since_s <= IDLE_KEPT_S and rested.look():
                return rested
            rested.abandon()
        return None

    def _take(self, url: str) -> FrameSocket | None:
        with self._lock:
            sockets = self._idle.get(url)
            return sockets.pop() if sockets else None

    def give_back(self, endpoint: str, used: FrameSocket) -> None:
        """Only after its pong: a socket whose reader is stuck on a requester that left would hold the next stream too."""
        used.idle_since_s = time.monotonic()
        with self._lock:
            self._lent.discard(used)
            self._idle[websocket_url(endpoint)].append(used)

    def abandon(self, used: FrameSocket) -> None:
        with self._lock:
            self._lent.discard(used)
        used.abandon()

    def _look_after(self) -> None:
        """Pings want a pong though the upstream is quiet, and nobody else closes what nobody borrows."""
        while True:
            time.sleep(LOOK_EACH_S)
            with self._lock:
                lent, stale = list(self._lent), self._take_stale(time.monotonic() - IDLE_KEPT_S)
            for used in lent:
                used.look()
            for rested in stale:
                rested.close()

    def _take_stale(self, before_s: float) -> list[FrameSocket]:
        stale: list[FrameSocket] = []
        for url, sockets in list(self._idle.items()):
            stale += [rested for rested in sockets if rested.idle_since_s < before_s]
            self._idle[url] = [rested for rested in sockets if rested.idle_since_s >= before_s]
            if not self._idle[url]:
                del self._idle[url]
        return stale
