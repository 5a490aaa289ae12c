"""Connections on one epoll loop, as cheap as Python has them: what measures must not be what is measured.

asyncio costs three times as much a message. Timers are due to the millisecond, as epoll's are.
"""

from __future__ import annotations

import heapq
import itertools
import select
import socket
import time
from collections.abc import Callable

READ_BYTES = 64 << 10
MAX_EVENTS = 512


class Loop:
    """Calls what is readable and what is due, until `is_over`. Everything runs on the thread of `run`.

    rest_s: a rest after each turn, so that what comes meanwhile is taken together. A turn for each of thousands of tokens a
    second, of a process that has just slept, costs several times as much.
    """

    def __init__(self, rest_s: float = 0.0) -> None:
        self.is_over = False
        self._rest_s = rest_s
        self._epoll = select.epoll()
        self._ready: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()  # two timers of one time are never compared further

    def run(self) -> None:
        while not self.is_over:
            for fd, _ in self._epoll.poll(self._wait_s(), MAX_EVENTS):
                ready = self._ready.get(fd)
                if ready is not None:  # else closed by one before it
                    ready()
            self._call_due()
            if self._rest_s:
                time.sleep(self._rest_s)

    def end(self) -> None:
        """After what is called now."""
        self.is_over = True

    def at(self, due_s: float, call: Callable[[], None]) -> None:
        """`due_s`: monotonic."""
        heapq.heappush(self._timers, (due_s, next(self._numbers), call))

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        self._ready[fd] = ready
        self._epoll.register(fd, select.EPOLLIN)

    def watch_writing(self, fd: int, wanted: bool) -> None:
        self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def forget(self, fd: int) -> None:
        del self._ready[fd]
        self._epoll.unregister(fd)

    def _wait_s(self) -> float:
        """-1: for as long as it takes."""
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1

    def _call_due(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()


class Wire:
    """One connection. A subclass says what to do with what was `received`, and when it is `lost`."""

    def __init__(self, loop: Loop, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.is_open = True
        self._loop, self._socket = loop, connection
        self._unsent = b""
        loop.watch(connection.fileno(), self._on_ready)

    def received(self, data: bytes) -> None:
        raise NotImplementedError

    def lost(self) -> None:
        """The other side closed it, or it broke."""

    def send(self, data: bytes) -> None:
        """Never blocks: what the kernel does not take now goes later."""
        if self._unsent:
            self._unsent += data
            return
        left = self._sent(data)
        if left and self.is_open:
            self._unsent = left
            self._loop.watch_writing(self._socket.fileno(), True)

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._loop.forget(self._socket.fileno())
            self._socket.close()

    def _sent(self, data: bytes) -> bytes:
        """What is left of it."""
        try:
            return data[self._socket.send(data) :]
        except BlockingIOError:
            return data
        except OSError:
            self._end()
            return b""

    def _on_ready(self) -> None:
        if self._unsent:
            self._unsent = self._sent(self._unsent)
            if not self._unsent and self.is_open:
                self._loop.watch_writing(self._socket.fileno(), False)
        if not self.is_open:
            return
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.received(data)
        else:
            self._end()

    def _end(self) -> None:
        if self.is_open:
            self.close()
            self.lost()


class Listener:
    """Accepts on a port of 127.0.0.1; each connection becomes what `serve` makes of it."""

    def __init__(self, loop: Loop, serve: Callable[[Loop, socket.socket], Wire], port: int = 0) -> None:
        self._loop, self._serve = loop, serve
        self._socket = socket.create_server(("127.0.0.1", port), backlog=2048)
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        loop.watch(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except BlockingIOError:
                return
            self._serve(self._loop, connection)
