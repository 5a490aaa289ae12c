"""One WebSocket of ours to somebody's service, on the loop. `websockets` speaks the protocol (its Sans-I/O half); the
connection and every deadline on it are ours."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import cast

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus, InvalidURI, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import WebSocketURI, parse_uri

from answers.dial import Dialer
from answers.endpoint import NotDelivered, NoWebSocket, NoWebSocketEver, is_final

OPEN_WITHIN_S = 5.0  # behind the connection
WRITE_TIMEOUT_S = 5.0
PONG_TIMEOUT_S = 2.0
PING_EACH_S = 2.0
LATE_S = 0.5  # a look that comes so late comes from a process that was stopped: what came meanwhile is not read yet
MAX_TEXT_BYTES = 16 << 20


def _hear_nothing(text: bytes) -> None:
    return


def _tell_nobody() -> None:
    return


class WebSocket(asyncio.Protocol):
    """`heard`: gets each text; `lost`: called once, when it is closed, by whomever."""

    def __init__(self, uri: WebSocketURI) -> None:
        self.heard: Callable[[bytes], None] = _hear_nothing
        self.lost: Callable[[], None] = _tell_nobody
        self.rested_since_s = 0.0
        self.heard_s = time.monotonic()
        self._protocol = ClientProtocol(uri, max_size=MAX_TEXT_BYTES)
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._writable: asyncio.Future[None] | None = None
        self._flushes_soon = False
        self._asked: deque[tuple[bytes, float]] = deque()  # pings without their pong, and when they were sent
        self._ponged: asyncio.Future[None] | None = None
        self._answered_s = 0.0

    @property
    def is_open(self) -> bool:
        return self._protocol.state is State.OPEN and self._transport is not None

    # by its owner

    def put(self, text: bytes) -> None:
        """One text frame; it goes out with all others of this turn of the loop. Raises OSError once the other side is
        gone."""
        if not self.is_open:
            raise ConnectionResetError("the other side closed the WebSocket")
        self._protocol.send_text(text)
        if not self._flushes_soon:
            self._flushes_soon = True
            self._loop.call_soon(self.flush)

    async def send(self, text: bytes) -> None:
        """As `put`, once what is on its way already is taken for the most part. Raises OSError, also where nothing is."""
        await self.until_writable()
        self.put(text)

    @property
    def is_full(self) -> bool:
        """The other side is slower than what is sent to it."""
        return self._writable is not None

    async def until_writable(self) -> None:
        """Raises OSError."""
        if (writable := self._writable) is None:
            return
        await asyncio.wait([writable], timeout=WRITE_TIMEOUT_S)
        for _ in range(2):  # a process that was stopped meanwhile finds its time over first, and then that it may write
            if not writable.done():
                await asyncio.sleep(0)
        if not writable.done():
            self.reset()
            raise TimeoutError("the other side takes nothing")
        if not self.is_open:
            raise ConnectionResetError("the other side closed the WebSocket")

    async def confirm(self) -> None:
        """A ping, and its pong: every frame before it was taken. Raises OSError (TimeoutError after 2 s)."""
        if not self.is_open:
            raise ConnectionResetError("the other side closed the WebSocket before its ping")
        self.ping()
        give_up_at_s = time.monotonic() + PONG_TIMEOUT_S
        while self._asked:
            if not self.is_open:
                raise ConnectionResetError("the other side closed the WebSocket before its pong")
            if time.monotonic() > give_up_at_s:
                raise TimeoutError("the other side says nothing")
            self._ponged = self._ponged or self._loop.create_future()
            await asyncio.wait([self._ponged], timeout=give_up_at_s - time.monotonic())
            await asyncio.sleep(0)  # a process that was stopped meanwhile has its pong unread

    def ping(self) -> None:
        if self.is_open:
            payload = f"{time.monotonic_ns()}".encode()
            self._protocol.send_ping(payload)
            self._asked.append((payload, time.monotonic()))
            self.flush()

    def ping_if_due(self) -> None:
        """Each PING_EACH_S."""
        if not self._asked or time.monotonic() - self._asked[-1][1] >= PING_EACH_S:
            self.ping()

    def silent_for_s(self) -> float:
        """How long a ping has been waiting for any pong: a slow reader answers late, but answers one after the other."""
        return time.monotonic() - max(self._asked[0][1], self._answered_s) if self._asked else 0.0

    def close(self) -> None:
        with contextlib.suppress(WebSocketException):
            if self.is_open:
                self._protocol.send_close(1000)
                self.flush()
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Megabytes that nobody reads would stay with the kernel for minutes."""
        if self._transport is not None:
            with contextlib.suppress(OSError):
                used = self._transport.get_extra_info("socket")
                used.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.abandon()

    def abandon(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None  # nothing is open any more, though the loop says so later

    async def opened(self, url: str) -> None:
        """Until the handshake is over. Raises NoWebSocket, NotDelivered."""
        try:
            async with asyncio.timeout(OPEN_WITHIN_S):
                await self._opened
        except OSError as error:
            self.abandon()
            raise NotDelivered(f"{url}: {str(error) or 'no WebSocket in time'}") from None
        why = self._protocol.handshake_exc
        if why is not None or not self.is_open:
            self.abandon()
            raise _no_websocket(why)(f"{url}: no WebSocket there: {why}")

    # by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods, not by its class
        self._protocol.send_request(self._protocol.connect())
        self.flush()

    def data_received(self, data: bytes) -> None:
        self.heard_s = time.monotonic()
        self._protocol.receive_data(data)
        self._take_events()

    def eof_received(self) -> None:
        self._protocol.receive_eof()
        self._take_events()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._protocol.state is not State.CLOSED:
            self._protocol.receive_eof()
        self._tell_all()
        self.lost()

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    def _take_events(self) -> None:
        for event in self._protocol.events_received():
            if not isinstance(event, Frame):
                self._tell(self._opened)  # the handshake's answer
            elif event.opcode is Opcode.TEXT:
                self.heard(bytes(event.data))
            elif event.opcode is Opcode.PONG:
                self._note_pong(bytes(event.data))
        self.flush()
        if self._protocol.handshake_exc is not None:
            self._tell(self._opened)
        if self._protocol.close_expected() and self._transport is not None:
            self._transport.close()

    def _note_pong(self, payload: bytes) -> None:
        """It answers the pings before it too (RFC 6455, 5.5.3)."""
        if any(asked == payload for asked, _ in self._asked):
            self._answered_s = time.monotonic()
            while self._asked and self._asked.popleft()[0] != payload:
                pass
            if self._ponged is not None:
                self._tell(self._ponged)
                self._ponged = None

    def flush(self) -> None:
        self._flushes_soon = False
        if (data := b"".join(self._protocol.data_to_send())) and self._transport is not None:
            self._transport.write(data)

    def _tell_all(self) -> None:
        for waiting in (self._opened, self._writable, self._ponged):
            if waiting is not None:
                self._tell(waiting)

    @staticmethod
    def _tell(waiting: asyncio.Future[None]) -> None:
        if not waiting.done():
            waiting.set_result(None)


async def open_socket(url: str, dialer: Dialer) -> WebSocket:
    """Connects. Raises NoWebSocket (NotAllowed too), NotDelivered."""
    uri = _parsed(url)
    try:
        made = await dialer.connect(lambda: WebSocket(uri), uri.host, uri.port, tls=uri.secure)
    except (OSError, ValueError) as error:  # ValueError: a host that cannot be a name
        raise NotDelivered(f"{url}: {str(error) or 'no connection in time'}") from None
    try:
        await made.opened(url)
    except BaseException:
        made.abandon()
        raise
    return made


def _parsed(url: str) -> WebSocketURI:
    try:
        return parse_uri(url)
    except (InvalidURI, ValueError) as error:
        raise NoWebSocket(f"{url}: {error}") from None


def _no_websocket(why: Exception | None) -> type[NotDelivered]:
    if not isinstance(why, InvalidStatus):
        return NotDelivered
    return NoWebSocketEver if is_final(why.response.status_code) else NoWebSocket
