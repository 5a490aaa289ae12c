"""HTTP/1.1 as a client, on the loop: kept connections, answers whose body is read as it comes. httptools parses."""

from __future__ import annotations

import asyncio
import math
import select
import time
import zlib
from collections.abc import Callable, Mapping
from typing import cast
from urllib.parse import SplitResult, quote

import httptools

MAX_HEAD_BYTES = 256 << 10  # and of a chunk's head, or of trailers: in a row, without anything of a body
MAX_HELD_BYTES = 1 << 20  # of a body that nobody reads: then the sender has to wait
MAX_INTERIM = 16  # answers of status 1xx


_AS_IT_IS = "/?%:@!$&'()*+,;=~[]"  # in an address's path and query; anything else is quoted


def post_head(to: SplitResult, headers: Mapping[str, str]) -> bytes:
    """Of a POST of JSON, but for how long it is. Raises ValueError where it cannot be written."""
    target = quote((to.path or "/") + (f"?{to.query}" if to.query else ""), safe=_AS_IT_IS)
    lines = {"Host": to.netloc.rpartition("@")[2], "Content-Type": "application/json", **headers}
    named = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {target} HTTP/1.1\r\n{named}".encode("latin-1")


class BadAnswer(ConnectionError):
    """What came is no answer, or its end is missing."""


class BadBody(BadAnswer):
    """It cannot be unpacked."""


class Connection(asyncio.Protocol):
    """One connection, for one answer after the other."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self.is_open = False
        self._reads = True

    async def answer(self, head: bytes, body: bytes, by_s: float) -> Answer:
        """To a `post_head` and its body; once its own head is there. Where it does not come, the connection is closed. Raises as
        Answer.head."""
        try:
            answer = self.ask(head + b"Content-Length: %d\r\n\r\n" % len(body), body)
            await answer.head(by_s)
            return answer
        except BaseException:
            self.close()
            raise

    def ask(self, head: bytes, body: bytes) -> Answer:
        """`head`: up to the empty line, which is included."""
        assert self._transport is not None
        self._answer = Answer(self)
        if self.is_open:
            self._transport.write(head + body)
        else:
            self._answer.lose(None)
        return self._answer

    def rest(self) -> bool:
        """No answer is awaited any more; whether another can be asked for."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.leave()
        if answer is not None and not (answer.leaves_connection_usable and self._reads):
            self.close()
        return self.is_open

    def is_quiet(self) -> bool:
        """Open, and nothing has come unasked: its end would be there before the loop has told of it."""
        if self._transport is None or not self.is_open:
            return False
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return not poll.poll(0)

    def fileno(self) -> int:
        assert self._transport is not None
        return int(self._transport.get_extra_info("socket").fileno())

    def close(self) -> None:
        self.is_open = False
        if self._answer is not None:
            self._answer.leave()
        if self._transport is not None:
            self._transport.abort()

    def set_reading(self, reads: bool) -> None:
        assert self._transport is not None
        self._reads = reads
        if self.is_open:
            (self._transport.resume_reading if reads else self._transport.pause_reading)()

    # by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.is_open = cast(asyncio.Transport, transport), True  # uvloop's is one by its methods, not by its class

    def data_received(self, data: bytes) -> None:
        if self._answer is None:  # nobody asked
            self.close()
        else:
            self._answer.feed(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if self._answer is not None:
            self._answer.lose(error)


class Answer:
    """status, headers (names in lower case): once `head` returned. Times are monotonic."""

    def __init__(self, connection: Connection) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_complete = False
        self.leaves_connection_usable = False
        self._connection = connection
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        # Some servers write it so, and it cannot be taken for anything else. (Bare line feeds: llhttp misses their last chunk.)
        self._parser.set_dangerous_leniencies(lenient_spaces_after_chunk_size=True, lenient_data_after_close=True)
        self._has_head = self._is_framed = False
        self._bare_bytes = self._interim = 0
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._unpack: Callable[[bytes], bytes] | None = None
        self._failure: OSError | None = None
        self._news: asyncio.Future[None] | None = None
        self._take: Callable[[bytes], float] | None = None
        self._loop = asyncio.get_running_loop()
        self._by_s = self._alarm_at_s = math.inf
        self._alarm: asyncio.TimerHandle | None = None

    async def head(self, by_s: float) -> None:
        """Raises TimeoutError, OSError (BadAnswer too)."""
        while not self._has_head:
            await self._wait(by_s)

    async def read_some(self, by_s: float) -> bytes:
        """What has come of the body, as soon as anything has; b"" at its end. Raises as `head`."""
        while not self._pieces:
            if self.is_complete:
                return b""
            await self._wait(by_s)
        return self._taken()

    async def hand_to(self, take: Callable[[bytes], float], by_s: float) -> None:
        """Each piece as it comes in, from the loop itself: to wake a task for each token costs more than the token. `take` says
        until when the next has to come, or 0.0 that it wants no more. Returns then, and at the end. Raises as `head`."""
        self._take = take
        try:
            while self._take is not None and not (self._pieces or self.is_complete):
                await self._wait(by_s)
        finally:
            self._take = None

    def _taken(self) -> bytes:
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        if self._held_bytes > MAX_HELD_BYTES:
            self._connection.set_reading(True)
        self._held_bytes = 0
        return piece

    def _hand_over(self, take: Callable[[bytes], float]) -> None:
        self._by_s = take(self._taken())
        if not self._by_s:
            self._take = None
        elif self._by_s < self._alarm_at_s:
            self._set_alarm()

    async def _wait(self, by_s: float) -> None:
        if self._failure is not None:
            raise self._failure
        self._by_s = by_s
        if by_s < self._alarm_at_s:
            self._set_alarm()
        self._news = self._loop.create_future()
        try:
            await self._news
        finally:
            self._news = None

    def _set_alarm(self) -> None:
        """One alarm for many waits: to set and to end one for each token costs more than the token."""
        self._end_alarm()
        self._alarm_at_s = self._by_s
        self._alarm = self._loop.call_later(self._by_s - time.monotonic(), self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm, self._alarm_at_s = None, math.inf
        if self._news is None or self._news.done():
            return
        if time.monotonic() < self._by_s:  # of a wait that is over
            self._set_alarm()
        else:
            self._news.set_exception(TimeoutError("nothing came in time"))

    def _end_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm, self._alarm_at_s = None, math.inf

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    # by its connection

    def feed(self, data: bytes) -> None:
        if self._parser is None:
            return
        self._bare_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(BadAnswer("it changes to another protocol, unasked"))
        except httptools.HttpParserError as error:  # behind its end it is somebody else's
            self._fail(BadAnswer(f"it is no HTTP: {error}"))
        if self._bare_bytes > MAX_HEAD_BYTES:
            self._fail(BadAnswer(f"it has a head of more than {MAX_HEAD_BYTES:,} bytes"))
        if self._take is not None and self._pieces:
            self._hand_over(self._take)
        if self._take is None or self.is_complete or self._failure is not None:
            self._tell()

    def leave(self) -> None:
        """Nobody waits for more of it. Its parser holds it by its methods: the two would be left to the garbage collector, which
        stops a busy loop for tens of milliseconds."""
        self._end_alarm()
        self._parser = None

    def lose(self, error: Exception | None) -> None:
        """The connection has ended, which is an answer's end where nothing else says how long it is."""
        if self._has_head and not self._is_framed and error is None and self._failure is None:
            self.is_complete = True
        elif not self.is_complete:
            self._fail(error if isinstance(error, OSError) else BadAnswer("the connection was closed in the middle of it"))
        self._tell()

    def _fail(self, failure: OSError) -> None:
        self.leaves_connection_usable = False
        if not self.is_complete:
            self._failure = self._failure or failure

    # by the parser

    def on_message_begin(self) -> None:
        if self.is_complete:  # of another one
            self.leaves_connection_usable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._has_head:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        if self._has_head:
            return
        assert self._parser is not None
        self.status = self._parser.get_status_code()
        if 100 <= self.status < 200:
            self.headers.clear()
            return
        self._has_head = True
        self._is_framed = "content-length" in self.headers or "chunked" in self.headers.get("transfer-encoding", "").lower()
        self._unpack = _unpacker(self.headers.get("content-encoding", ""))

    def on_body(self, data: bytes) -> None:
        if self.is_complete or not self._has_head:
            return
        self._bare_bytes = 0
        if self._unpack is not None:
            data = self._unpacked(self._unpack, data)
        if data:
            self._pieces.append(data)
            self._held_bytes += len(data)
            if self._held_bytes > MAX_HELD_BYTES:
                self._connection.set_reading(False)

    def _unpacked(self, unpack: Callable[[bytes], bytes], data: bytes) -> bytes:
        try:
            return unpack(data)
        except zlib.error as error:
            self._fail(BadBody(f"its body cannot be unpacked: {error}"))
            return b""

    def on_message_complete(self) -> None:
        if not self._has_head:  # of status 1xx
            self._interim += 1
            if self._interim > MAX_INTERIM:
                self._fail(BadAnswer("it never gets past its interim answers"))
        elif not self.is_complete and self._failure is None:
            assert self._parser is not None
            self.is_complete = True
            self.leaves_connection_usable = self._parser.should_keep_alive()


class Connections:
    """Rested connections to one place, the newest first."""

    def __init__(self, most_rested: int) -> None:
        self._most_rested = most_rested
        self._rested: list[Connection] = []

    def take(self) -> Connection | None:
        """None: another has to be made."""
        while self._rested:
            if (connection := self._rested.pop()).is_quiet():
                return connection
            connection.close()
        return None

    def give_back(self, connection: Connection) -> None:
        """One whose answer was read, or is of no interest any more; or that was never asked."""
        if connection.rest():
            self._rested.append(connection)
            if len(self._rested) > self._most_rested:
                self._rested.pop(0).close()

    def close(self) -> None:
        """What is in use is closed when it is given back."""
        self._most_rested = 0
        while self._rested:
            self._rested.pop().close()


def _unpacker(encoding: str) -> Callable[[bytes], bytes] | None:
    """Some pack what they were asked not to pack."""
    packed = encoding.strip().lower() in ("gzip", "x-gzip", "deflate")
    return zlib.decompressobj(32 + zlib.MAX_WBITS).decompress if packed else None
