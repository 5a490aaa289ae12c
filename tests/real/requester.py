"""A requester's service, as a node sees it: POST /res and WS /res/ws of the wire contract, well and in every wrong way.

Plain sockets and threads, one for each connection, as tests want what servers prevent: a reader that stops for good, a
ping without its pong, a POST that hangs. What came is recorded with its time (`time.monotonic()`).
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from tests.real.processes import free_port, wait_until


@dataclass(frozen=True)
class Seen:
    """A body that was posted, or a frame: as it came, when, and on which connection (numbered from 1)."""

    text: bytes
    at_s: float
    connection: int

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text)
        return found


class Requester:
    """`with Requester() as requester:`; its attributes may be changed at any time.

    unknown: ids that it never knows; known_from_s: ids that it knows only from then on (monotonic); post_status: instead
    of 200; hangs: POSTs get no answer; stops_reading_after: so many frames of a socket, then nothing is read any more, as
    the existing service does for a requester that left; closes_after: so many frames; pongs: False answers no ping;
    pongs_after_s: so long after the ping; pings: it pings each socket after every frame; forgets: an id that has its answer
    is unknown from then on, as it is to the existing service.
    """

    def __init__(self) -> None:
        self.unknown: set[str] = set()
        self.known_from_s: dict[str, float] = {}
        self.post_status = 200
        self.hangs = False
        self.stops_reading_after: int | None = None
        self.closes_after: int | None = None
        self.pongs = True
        self.pongs_after_s = 0.0
        self.pings = False
        self.forgets = False
        self.pongs_received = 0
        self.post_tries = 0
        self.connections = 0
        self.sockets = 0  # of the connections, WebSockets
        self.open_connections = 0
        self._posts: dict[str, list[Seen]] = defaultdict(list)
        self._frames: dict[str, list[Seen]] = defaultdict(list)
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._accepted: list[socket.socket] = []
        self._ended = threading.Event()
        self.port = free_port()

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/res"

    @property
    def websocket_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/res/ws"

    def posts(self, request_id: str) -> list[Seen]:
        """Bodies that were taken with status 200."""
        return list(self._posts[request_id])

    def frames(self, request_id: str) -> list[Seen]:
        return list(self._frames[request_id])

    def take(self, request_id: str) -> list[Seen]:
        """All that came for it, which is then forgotten."""
        return self._posts.pop(request_id, []) + self._frames.pop(request_id, [])

    def ids(self) -> list[str]:
        return [request_id for kept in (self._posts, self._frames) for request_id, seen in list(kept.items()) if seen]

    def stream(self, request_id: str, within_s: float = 10.0) -> list[dict[str, Any]]:
        """All frames of a stream, once its end has come."""
        wait_until(lambda: any(seen.json["end"] for seen in self.frames(request_id)), within_s=within_s, what=f"end of {request_id}")
        return [seen.json for seen in self.frames(request_id)]

    # its life

    def start(self) -> Requester:
        """Again after `stop`, it is on the same port."""
        self._ended.clear()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=512)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        return self

    def stop(self) -> None:
        """From now on connections are refused; those that are open are closed."""
        self._ended.set()
        with self._lock:
            ending, self._accepted = self._accepted, []
        for held in [self._listener, *ending]:
            with contextlib.suppress(OSError):
                assert held is not None
                held.shutdown(socket.SHUT_RDWR)
        if self._listener is not None:
            self._listener.close()

    def __enter__(self) -> Requester:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _accept(self, listener: socket.socket) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self.open_connections += 1
                number = self.connections
                self._accepted.append(connection)
            threading.Thread(target=self._converse, args=(connection, number), daemon=True).start()

    def _converse(self, connection: socket.socket, number: int) -> None:
        try:
            with connection, contextlib.suppress(OSError, EOFError):
                self._serve(connection, number)
        finally:
            with self._lock:
                self.open_connections -= 1

    def _serve(self, connection: socket.socket, number: int) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        left = b""
        while True:
            while b"\r\n\r\n" not in left:
                left += _received(connection)
            head, _, left = left.partition(b"\r\n\r\n")
            if b"upgrade: websocket" in head.lower():
                _WebSocket(self, connection, number).serve(head + b"\r\n\r\n" + left)
                return
            length = int(next(line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")))
            while len(left) < length:
                left += _received(connection)
            self._answer(connection, left[:length], number)
            left = left[length:]

    # POST /res

    def _answer(self, connection: socket.socket, body: bytes, number: int) -> None:
        with self._lock:
            self.post_tries += 1
        if self.hangs:
            while _received(connection):
                pass
        status = self._status_of(body)
        if status == 200:
            self._posts[json.loads(body)["request_id"]].append(Seen(body, time.monotonic(), number))
        said = b'{"status":"ok"}'
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(said)}\r\n\r\n"
        connection.sendall(head.encode() + said)

    def _status_of(self, body: bytes) -> int:
        try:
            found = json.loads(body)
            known = self.knows(found["request_id"])
            has_data = isinstance(found["data"], dict)
        except (ValueError, KeyError, TypeError):
            return 400
        return self.post_status if known and has_data else 404 if has_data else 400

    def knows(self, request_id: str) -> bool:
        if self.forgets and (self._posts[request_id] or any(seen.json["end"] for seen in self._frames[request_id][-1:])):
            return False
        return request_id not in self.unknown and time.monotonic() >= self.known_from_s.get(request_id, 0.0)

    def took(self, text: bytes, number: int) -> None:
        """A frame: dropped in silence where it is no JSON or its id is not known."""
        now_s = time.monotonic()
        with contextlib.suppress(ValueError, KeyError, TypeError):
            request_id = json.loads(text)["request_id"]
            if self.knows(request_id):
                self._frames[request_id].append(Seen(text, now_s, number))

    def opened(self) -> None:
        with self._lock:
            self.sockets += 1


def _received(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 16)
    if not data:
        raise EOFError
    return data


class _WebSocket:
    """One WebSocket of the service."""

    def __init__(self, service: Requester, connection: socket.socket, number: int) -> None:
        self._service, self._connection, self._number = service, connection, number
        self._protocol = ServerProtocol(max_size=None)
        self._taken = 0

    def serve(self, first: bytes) -> None:
        self._read(first)
        self._write()
        while not self._protocol.close_expected():
            if self._is_stuck():
                self._wait_for_good()
            self._read(_received(self._connection))
            if not self._is_stuck():  # a ping that came along with the last wanted frame counts as unread
                self._write()

    def _read(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            self._take(event)

    def _is_stuck(self) -> bool:
        return self._taken == self._service.stops_reading_after

    def _take(self, event: Any) -> None:
        if isinstance(event, Request):
            self._protocol.send_response(self._protocol.accept(event))
            self._service.opened()
        elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
            self._take_text(bytes(event.data))
        elif isinstance(event, Frame) and event.opcode is Opcode.PONG:
            self._service.pongs_received += 1

    def _take_text(self, text: bytes) -> None:
        if self._is_stuck():
            return
        self._taken += 1
        self._service.took(text, self._number)
        if self._service.pings:
            self._protocol.send_ping(b"are you there")
        if self._taken == self._service.closes_after:
            self._protocol.send_close(1001, "going away")

    def _write(self) -> None:
        """The protocol answers pings by itself: without `pongs`, its answers are dropped (a pong's first byte is 0x8A)."""
        for data in self._protocol.data_to_send():
            if is_pong := data[:1] == b"\x8a":
                time.sleep(self._service.pongs_after_s)
            if data and (self._service.pongs or not is_pong):
                self._connection.sendall(data)

    def _wait_for_good(self) -> None:
        """Until the service ends or the other side has closed, without reading."""
        poll = select.poll()
        poll.register(self._connection.fileno(), select.POLLRDHUP)
        while not self._service._ended.is_set() and not poll.poll(50):
            pass
        raise EOFError
