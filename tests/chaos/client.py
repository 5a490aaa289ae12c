"""One request through a gateway, by hand: what an OpenAI client would see of it, broken connections included."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.chaos.ledger import Asked, Ledger, text_of

BROKEN = (OSError, EOFError, ValueError, asyncio.LimitOverrunError)
NOT_A_NODES = {"queue_unavailable", "shutting_down", "server_is_overloaded"}  # refused before anything was published
GAVE_UP = ("No answer came within", "The stream was silent for")  # the gateway's own words for an answer that never came


async def ask(ledger: Ledger, asked: Asked, port: int, body: dict[str, Any]) -> None:
    """Returns when the request has ended, however it did. Its tag travels as the User-Agent."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        ledger.end(asked, "unreachable")
        return
    transport, loop = writer.transport, asyncio.get_running_loop()

    def hang_up() -> None:
        loop.call_soon_threadsafe(transport.abort)

    asked.hang_up = hang_up
    try:
        writer.write(_request(asked.tag, port, body))
        await _Answer(ledger, asked, reader).read()
    except BROKEN:
        if asked.final is None:
            ledger.end(asked, "broken")
    finally:
        transport.abort()


def _request(tag: str, port: int, body: dict[str, Any]) -> bytes:
    payload = json.dumps(body).encode()
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"User-Agent: {tag}",
        "Content-Type: application/json",
        f"Content-Length: {len(payload)}",
        "Connection: close",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + payload


class _Answer:
    def __init__(self, ledger: Ledger, asked: Asked, reader: asyncio.StreamReader) -> None:
        self._ledger, self._asked, self._reader = ledger, asked, reader
        self._headers: dict[str, str] = {}

    async def read(self) -> None:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self._headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        self._asked.request_id = self._headers.get("x-request-id", "")
        if "event-stream" in self._headers.get("content-type", ""):
            await self._read_events()
            return
        data = json.loads(await self._body())
        error = data.get("error")
        if error is None:
            self._asked.said(text_of(data))
        if error is None and self._asked.stream:
            self._asked.faults.append("a whole answer to a stream")
        self._end(error)

    async def _body(self) -> bytes:
        if "content-length" in self._headers:
            return await self._reader.readexactly(int(self._headers["content-length"]))
        found = b""
        while piece := await self._chunk():
            found += piece
        return found

    async def _chunk(self) -> bytes:
        """The next of a chunked body; empty at its end."""
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        return (await self._reader.readexactly(size + 2))[:-2]

    async def _read_events(self) -> None:
        left = b""
        while piece := await self._chunk():
            *events, left = (left + piece).split(b"\n\n")
            for event in events:
                self._take(event)
        if self._asked.final is None:
            self._asked.faults.append("a stream that ended with neither [DONE] nor an error")
            self._end({"message": "no end", "code": "no_end"})

    def _take(self, event: bytes) -> None:
        if event.startswith(b":") or self._asked.final == "hung up":
            return
        if self._asked.final is not None:
            self._asked.faults.append(f"an event after the end: {event[:80]!r}")
            return
        said = event.removeprefix(b"data: ")
        if said == b"[DONE]":
            self._end(None)
            return
        data = json.loads(said)
        if "error" in data:
            self._end(data["error"])
        else:
            self._asked.said(text_of(data))

    def _end(self, error: dict[str, Any] | None) -> None:
        if error is None:
            self._ledger.end(self._asked, "result")
        elif error.get("code") in NOT_A_NODES:
            self._ledger.end(self._asked, "refused", error)
        else:
            if str(error.get("message")).startswith(GAVE_UP):
                self._asked.faults.append(f"lost: {error.get('message')}")
            self._ledger.end(self._asked, "error", error)
