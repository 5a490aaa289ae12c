"""The HTTP side of the test upstream: connections, what was asked and answered, and the statistics.

Written on plain asyncio streams, because tests want what HTTP servers prevent: a reset, half an answer, a border
between two bytes of one character.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field, replace
from http import HTTPStatus
from typing import Any

import psutil

from tests.real.upstream.ask import Ask, Cut, Kill, Reply, Reset
from tests.real.upstream.bucket import Limits
from tests.real.upstream.streams import reply_to
from tests.real.upstream.tally import append

MAX_HEADER_BYTES = 1 << 20


@dataclass
class Stats:
    """answered: a 200 sent to its end, whatever it said. failed: an HTTP error, or a connection ended on purpose.
    cancelled: the client left before the end."""

    connections: int = 0
    received: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0
    answered: int = 0
    failed: int = 0
    cancelled: int = 0
    limited: int = 0  # of those that failed, by the rate limit
    prompt_tokens: int = 0  # of the usage that was really reported
    completion_tokens: int = 0


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        try:
            decoded = json.loads(self.body)
        except ValueError:
            return {}
        return decoded if isinstance(decoded, dict) else {}


@dataclass
class Server:
    """key: what the Authorization header must hold, empty: anything. slots: what /props says. loading_s: 503 until then.
    limits: a rate limit over all requests, if there is one.
    tally: a file to which each completion's tokens are appended, for who is killed and would forget them."""

    key: str = ""
    slots: int = 4
    loading_s: float = 0.0
    everybody: str = ""  # a behaviour that overrides what requests ask for
    limits: Limits | None = None
    tally: str = ""
    stats: Stats = field(default_factory=Stats)
    requests: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=200))
    seen: Counter[str] = field(default_factory=Counter)
    ready_at: float = 0.0

    async def serve(self, host: str, port: int) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        self.ready_at = loop.time() + self.loading_s
        return await loop.create_server(lambda: Connection(self), host, port, backlog=1024)

    def answer(self, request: Request) -> tuple[Reply, Ask | None]:
        path = request.path.split("?")[0]
        if path.endswith("/chat/completions") and request.method == "POST":
            ask = self._ask(request)
            return self._limited(ask) or reply_to(ask), ask
        return self._aside(request, path), None

    def _limited(self, ask: Ask) -> Reply | None:
        """The refusal; or else the answer, told of what is left."""
        if self.limits is None:
            return None
        refusal = self.limits.refusal(ask, asyncio.get_running_loop().time())
        if refusal is not None:
            self.stats.limited += 1
            return refusal
        reply = reply_to(ask)
        return replace(reply, headers={**self.limits.told(), **reply.headers})

    def _ask(self, request: Request) -> Ask:
        body = request.json()
        sent_key = request.headers.get("authorization", "").removeprefix("Bearer ")
        ask = Ask(body, self.everybody or str(body.get("mock") or body.get("model") or ""), sent_key)
        self.requests.append({"path": request.path, "headers": request.headers, "body": body, "behaviour": ask.behaviour})
        if self.key and sent_key != self.key:
            ask.name = "err-401"
        elif "messages" not in body:
            ask.name = "err-400-body"
        elif asyncio.get_running_loop().time() < self.ready_at:
            ask.name = "err-503-loading"
        elif "times" in ask.params:
            name = f"{ask.behaviour} {ask.params.get('id', ask.said)}"
            self.seen[name] += 1
            if self.seen[name] > int(ask.params["times"]):
                ask.name = "mock"
        return ask

    def _aside(self, request: Request, path: str) -> Reply:
        """Everything but completions: tests' own requests, and what OpenAI or llama.cpp have beside."""
        match request.method, path:
            case "GET", "/stats":
                return _json(asdict(self.stats))
            case "DELETE", "/stats":
                self.stats = Stats(in_flight=self.stats.in_flight)
                self.requests.clear()
                self.seen.clear()
                return _json({})
            case "GET", "/requests":
                return _json(list(self.requests))
            case "PUT", "/everybody":
                self.everybody = str(request.json().get("behaviour") or "")
                return _json({})
            case "GET", "/health" | "/props" | "/v1/models" | "/models":
                return self._probed(request, path)
        return _json({"error": {"message": f"Invalid URL ({request.method} {path})", "type": "invalid_request_error"}}, 404)

    def _probed(self, request: Request, path: str) -> Reply:
        probe = Ask({"model": "probe"}, self.everybody, request.headers.get("authorization", "").removeprefix("Bearer "))
        if path == "/health" and asyncio.get_running_loop().time() < self.ready_at:
            probe.name = "err-503-loading"
        elif path.endswith("/models") and self.key and probe.key != self.key:
            probe.name = "err-401"
        if probe.name.startswith("err-"):
            return reply_to(probe)
        if path == "/props":
            return _json({"total_slots": self.slots})
        return _json({"status": "ok"} if path == "/health" else {"object": "list", "data": [{"id": "mock", "object": "model"}]})


def _json(payload: object, status: int = 200) -> Reply:
    return Reply(json.dumps(payload).encode(), status)


class Connection(asyncio.StreamReaderProtocol):
    """One client's connection. Its leaving cancels what is being answered, as a model server would."""

    def __init__(self, server: Server) -> None:
        super().__init__(asyncio.StreamReader(limit=MAX_HEADER_BYTES), self._converse)
        self._server = server
        self._answering: asyncio.Task[None] | None = None

    def eof_received(self) -> bool | None:
        self._left()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._left()
        super().connection_lost(exc)

    def _left(self) -> None:
        if self._answering is not None:
            self._answering.cancel()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server.stats.connections += 1
        try:
            while (request := await _read_request(reader, writer)) is not None:
                self._answering = asyncio.create_task(self._answer(request, writer))
                await self._answering
                self._answering = None
                if request.headers.get("connection", "").lower() == "close":
                    break
        except Reset:
            _reset(writer)
        except Kill:
            _kill(writer.get_extra_info("peername"), writer.get_extra_info("sockname"))
        except (Cut, asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        reply, ask = self._server.answer(request)
        if ask is None:
            await _send(reply, writer)
            return
        try:
            with _counted(self._server.stats, ask, reply):
                await _send(reply, writer)
        finally:
            if self._server.tally:
                append(self._server.tally, ask)


@contextlib.contextmanager
def _counted(stats: Stats, ask: Ask, reply: Reply) -> Iterator[None]:
    stats.received += 1
    stats.in_flight += 1
    stats.peak_in_flight = max(stats.peak_in_flight, stats.in_flight)
    try:
        yield
        if reply.status == 200:
            stats.answered += 1
        else:
            stats.failed += 1
    except (Reset, Cut, Kill):
        stats.failed += 1
        raise
    except (asyncio.CancelledError, ConnectionError):
        stats.cancelled += 1
        raise
    finally:
        stats.in_flight -= 1
        if ask.usage_reported:
            stats.prompt_tokens += ask.usage["prompt_tokens"]
            stats.completion_tokens += ask.usage["completion_tokens"]


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return Request(method, path, headers, await _read_chunks(reader))
    return Request(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readline()).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


async def _send(reply: Reply, writer: asyncio.StreamWriter) -> None:
    """Headers go out with the first piece, so that a behaviour can end the connection before anything was answered."""
    if isinstance(reply.body, bytes):
        writer.write(_head(reply, len(reply.body)) + reply.body)
        await writer.drain()
        return
    head, chunked = _head(reply, reply.length), reply.length is None
    async for piece in _closed_at_end(reply.body):
        framed = b"%x\r\n%b\r\n" % (len(piece), piece) if chunked and piece else piece
        writer.write(head + framed)  # an empty piece sends the headers alone
        head = b""
        await writer.drain()
    if chunked:
        writer.write(head + b"0\r\n\r\n")
    elif head:
        writer.write(head)
    await writer.drain()


async def _closed_at_end(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        async for piece in pieces:
            yield piece
    finally:
        closing = getattr(pieces, "aclose", None)
        if closing:
            await closing()


def _head(reply: Reply, length: int | None) -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = [f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}", f"Content-Type: {reply.content_type}", framing]
    lines += [f"{name}: {value}" for name, value in reply.headers.items()]
    return ("\r\n".join([*lines, "x-request-id: req_test", "", ""])).encode("latin-1")


def _kill(peer: tuple[str, int], here: tuple[str, int]) -> None:
    """SIGKILL to whoever holds the other end. Both ends count: one port may serve several connections."""
    for found in psutil.net_connections("tcp"):
        if (found.laddr, found.raddr) == (peer, here) and found.pid:
            os.kill(found.pid, signal.SIGKILL)


def _reset(writer: asyncio.StreamWriter) -> None:
    """No lingering: closing then sends RST."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
