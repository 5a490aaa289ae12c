"""Streams: text frames on a WebSocket, one stream at a time, over pooled sockets.

`websockets` speaks the protocol (its Sans-I/O half); the socket and every deadline on it are ours. Its own blocking
client costs two threads a connection and has no deadline for a send.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections import defaultdict

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidURI, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from answers.endpoint import NotDelivered, websocket_url

CONNECT_TIMEOUT_S = 5.0
WRITE_TIMEOUT_S = 5.0
PONG_TIMEOUT_S = 2.0
IDLE_KEPT_S = 10.0  # below the 20 s after which common servers give up on a silent client
_READ_BYTES = 64 << 10
_LOOK_EACH_S = 1.0


class FrameSocket:
    """One open WebSocket. Not thread-safe: its borrower owns it."""

    def __init__(self, url: str, tls: ssl.SSLContext) -> None:
        """Connects. Raises NotDelivered."""
        self.idle_since_s = 0.0
        self._looked_at_s = time.monotonic()
        try:
            uri = parse_uri(url)
            self._protocol = ClientProtocol(uri)
            self._socket = socket.create_connection((uri.host, uri.port), CONNECT_TIMEOUT_S)
        except (OSError, InvalidURI, ValueError) as error:
            raise NotDelivered(f"{url}: {error}") from None
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if uri.secure:
                self._socket = tls.wrap_socket(self._socket, server_hostname=uri.host)
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
        now_s = time.monotonic()
        if now_s - self._looked_at_s > _LOOK_EACH_S:
            self._look(now_s)
        if self._protocol.state is not State.OPEN:
            raise ConnectionResetError("the other side closed the WebSocket")
        self._protocol.send_text(text)
        self._write()

    def confirm(self) -> None:
        """A ping, and its pong: every frame before it was taken. Raises OSError (TimeoutError after 2 s)."""
        payload = f"{time.monotonic_ns()}".encode()
        self._protocol.send_ping(payload)
        self._write()
        deadline_s = time.monotonic() + PONG_TIMEOUT_S
        while payload not in self._read(deadline_s):
            if self._protocol.state is not State.OPEN:
                raise ConnectionResetError("the other side closed the WebSocket before its pong")

    def is_fresh(self) -> bool:
        """After a rest: still open, as far as can be seen without waiting?"""
        if time.monotonic() - self.idle_since_s > IDLE_KEPT_S:
            return False
        try:
            self._look(time.monotonic())
        except OSError:
            return False
        return self._protocol.state is State.OPEN

    def close(self) -> None:
        with contextlib.suppress(OSError, WebSocketException):
            self._protocol.send_close(1000)
            self._write()
        self.abandon()

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()

    def _look(self, now_s: float) -> None:
        """Take what has come in (pings to be answered, a close) without waiting for more."""
        self._looked_at_s = now_s
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        while self._protocol.state is State.OPEN and poll.poll(0):
            self._read(now_s + WRITE_TIMEOUT_S)

    def _write(self) -> None:
        self._socket.settimeout(WRITE_TIMEOUT_S)
        for data in self._protocol.data_to_send():
            if data:
                self._socket.sendall(data)

    def _read(self, deadline_s: float) -> set[bytes]:
        """Wait for bytes, answer what they ask; returns the payloads of pongs. Raises OSError."""
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the other side says nothing")
        self._socket.settimeout(left_s)
        data = self._socket.recv(_READ_BYTES)
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        self._write()
        events = self._protocol.events_received()
        return {bytes(event.data) for event in events if isinstance(event, Frame) and event.opcode is Opcode.PONG}


class SocketPool:
    """Rested sockets by endpoint. Thread-safe."""

    def __init__(self, ca_bundle: str | None) -> None:
        self._tls = ssl.create_default_context(cafile=ca_bundle)
        self._idle: dict[str, list[FrameSocket]] = defaultdict(list)
        self._lock = threading.Lock()

    def borrow(self, endpoint: str) -> FrameSocket:
        """A socket for one stream. Raises NotDelivered."""
        url = websocket_url(endpoint)
        while rested := self._take(url):
            if rested.is_fresh():
                return rested
            rested.abandon()
        return FrameSocket(url, self._tls)

    def _take(self, url: str) -> FrameSocket | None:
        with self._lock:
            sockets = self._idle.get(url)
            return sockets.pop() if sockets else None

    def give_back(self, endpoint: str, used: FrameSocket) -> None:
        """Only after its pong: a socket whose reader is stuck on a requester that left would hold the next stream too."""
        used.idle_since_s = time.monotonic()
        stale: list[FrameSocket] = []
        with self._lock:
            self._idle[websocket_url(endpoint)].append(used)
            for url in list(self._idle):
                kept = [s for s in self._idle[url] if used.idle_since_s - s.idle_since_s <= IDLE_KEPT_S]
                stale += [s for s in self._idle[url] if s not in kept]
                self._idle[url] = kept
                if not kept:
                    del self._idle[url]
        for rested in stale:
            rested.close()

