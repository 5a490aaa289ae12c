"""Connections to the gateway, bounded in number, in the time that a request may take to say what it wants, and in its size.

The server below has none of these bounds itself. Whoever holds a connection without asking anything is the first to lose it.
"""

from __future__ import annotations

import resource
from asyncio import Transport
from asyncio.transports import BaseTransport
from collections import OrderedDict
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

import uvicorn
from loguru import logger
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from errors import error_object
from gateway.problem import Problem, invalid, unavailable

HEAD_WITHIN_S = 10.0
MAX_HEAD_BYTES = 64 * 1024
# What may follow a request that was refused before its body had come, which its client may not have read yet.
_MAX_REST_BYTES = 16 * 1024 * 1024
_ROOM_FOR_NODES = 1024
_OTHER_FILES = 128
_MOST_FILES = 1 << 16


def raise_file_limit() -> None:
    """To what this process may have: the usual 1,024 are fewer than one gateway can serve."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connection_limit(max_pending: int) -> int:
    """One for each request that waits, as many again for who reads, writes or rests, and nodes'; as far as files go."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(min(2 * max_pending + _ROOM_FOR_NODES, files - _OTHER_FILES), 16)


class Door:
    """Who is connected without a request of theirs being worked on. Used on the event loop's thread only."""

    def __init__(self, limit: int, head_within_s: float = HEAD_WITHIN_S) -> None:
        self._limit, self._head_within_s = limit, head_within_s
        self._awaited: OrderedDict[HttpConnection, float] = OrderedDict()  # until when its head should be here
        self._resting: OrderedDict[HttpConnection, None] = OrderedDict()  # between two requests
        self._is_crowded = False

    def admit(self, connected: int) -> bool:
        """A connection, with which there are so many. Over the limit the one goes that has asked nothing for the longest."""
        self._report(connected)
        if connected <= self._limit:
            return True
        idle = next(iter(self._awaited), None) or next(iter(self._resting), None)
        if idle is not None:
            idle.drop()
        return idle is not None

    def _report(self, connected: int) -> None:
        """Once a crowd."""
        if connected > self._limit and not self._is_crowded:
            self._is_crowded = True
            logger.warning("over {} connections, more than this gateway can have: idle ones are closed, then new ones refused", self._limit)
        elif connected < 0.8 * self._limit:
            self._is_crowded = False

    def await_head(self, connection: HttpConnection, now_s: float) -> None:
        self._resting.pop(connection, None)
        if connection not in self._awaited:
            self._awaited[connection] = now_s + self._head_within_s

    def rest(self, connection: HttpConnection) -> None:
        self._resting[connection] = None

    def forget(self, connection: HttpConnection) -> None:
        self._awaited.pop(connection, None)
        self._resting.pop(connection, None)

    def sweep(self, now_s: float) -> None:
        """Each has the same time, so the first to come is the first to be late."""
        while self._awaited:
            connection, until_s = next(iter(self._awaited.items()))
            if until_s > now_s:
                return
            del self._awaited[connection]
            connection.refuse(invalid(f"The request did not come within {self._head_within_s:g} s.", "timeout", status=408))


class _Writable:
    """A transport that takes no notice of what is written once it is closing, as asyncio's do. uvloop's raise, and uvicorn
    would log a traceback for each requester that left in the wrong instant."""

    def __init__(self, transport: BaseTransport) -> None:
        self._transport = cast(Transport, transport)

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class HttpConnection(AutoHTTPProtocol):  # type: ignore[valid-type,misc]
    """One connection of uvicorn's, whichever parser it has. lost: called where it ends while somebody waits over it."""

    transport: Transport
    lost: Callable[[], None] | None = None

    def __init__(self, config: uvicorn.Config, *arguments: Any, door: Door, **named: Any) -> None:
        super().__init__(config, *arguments, **named)
        self._door = door
        self._idle_bytes = 0
        self._upgraded = False

    def connection_made(self, transport: BaseTransport) -> None:
        """Each request is given its connection: ASGI has no way to drop one whose peer does not read, and a task to await
        its end costs more than to be called."""
        super().connection_made(_Writable(transport))
        self.app_state: dict[str, object] = {**self.app_state, "transport": self.transport, "connection": self}
        if self._door.admit(len(self.connections)):
            self._door.await_head(self, self.loop.time())
        else:
            self.refuse(unavailable("The gateway has too many connections.", "too_many_connections", retry_after_s=1))

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._upgraded or self._is_at_work:
            self._door.forget(self)
            self._idle_bytes = 0
            return
        self._door.await_head(self, self.loop.time())
        self._idle_bytes += len(data)
        if self._idle_bytes > (MAX_HEAD_BYTES if self.cycle is None else _MAX_REST_BYTES):
            self.refuse(invalid(f"The request's headers are over {MAX_HEAD_BYTES:,} bytes.", "headers_too_large", status=431))

    @property
    def _is_at_work(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not (self._is_at_work or self.transport.is_closing()):  # the next request may have been here already
            self._door.rest(self)

    def handle_websocket_upgrade(self, *event: Any) -> None:
        self._upgraded = True  # first: what comes in from now on is another protocol's
        super().handle_websocket_upgrade(*event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.forget(self)
        if self.lost is not None:
            self.lost()
        super().connection_lost(exc)

    def send_400_response(self, _: str) -> None:
        self.refuse(Problem(error_object("What came is no HTTP/1.1 request.", "invalid_request_error", "invalid_http"), 400))

    def refuse(self, problem: Problem) -> None:
        """Says so where an answer is due, and closes."""
        if self.transport.is_closing():
            return
        if self.cycle is None or (self._is_at_work and not self.cycle.response_started):
            self.transport.write(_response(problem))
        self.transport.close()

    def drop(self) -> None:
        self._door.forget(self)
        self.transport.abort()


def _response(problem: Problem) -> bytes:
    body = problem.body()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close", **problem.headers}
    lines = [f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
