"""The floor: the bare cost of a request's parts, `python -m bench.floor --url pulsar://… --model NAME`.

It does a node's work in a node's place, with a node's client libraries: receive and acknowledge with Pulsar's, one at a time, as
what is prefetched no other node can have; ask the upstream with httptools on uvloop; send the answer; publish a record of its
usage. Nothing is caught, checked, counted, limited, timed, tried again or kept apart, and what goes wrong ends it. Whatever a
node costs more is what it costs to be one.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Generic, Self, TypeVar, cast
from urllib.parse import urlsplit

import httptools
import msgspec
import pulsar
import uvloop

from backends.demo import ANSWER
from bench.client import quiet_client
from messaging.topics import request_topic, subscription

READY = "the floor is ready"
RECEIVE_WITHIN_MS = 1000  # never without: messaging/line.py says why
DEMO_MESSAGE = {"role": "assistant", "content": ANSWER}
DEMO = json.dumps({"object": "chat.completion", "choices": [{"index": 0, "message": DEMO_MESSAGE, "finish_reason": "stop"}]}).encode()


class Envelope(msgspec.Struct):
    request_id: str
    stream: bool
    endpoint: str
    data: msgspec.Raw
    metadata: dict[str, dict[str, msgspec.Raw]]

    @property
    def link(self) -> str:
        """"" where none is offered."""
        offered = self.metadata.get("workernode", {}).get("link")
        return str(msgspec.json.decode(offered)) if offered else ""


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Completion(msgspec.Struct):
    """Or a stream's last event."""

    usage: Usage | None = None


class Record(msgspec.Struct):
    """As long as a node's."""

    request_id: str
    usage: Usage
    model: str
    others: str = "x" * 800


class Wire(asyncio.Protocol):
    """A connection."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)


_Wire = TypeVar("_Wire", bound=Wire)
_Link = TypeVar("_Link", bound="Link")


class Call(Wire):
    """POSTs, one after the other. `take`: told each piece of the answer's body."""

    def post(self, url: str, body: bytes, take: Callable[[bytes], None]) -> asyncio.Future[None]:
        parts = urlsplit(url)
        self._parser, self._take = httptools.HttpResponseParser(self), take
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        self.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return self._over

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, piece: bytes) -> None:
        self._take(piece)

    @property
    def status(self) -> int:
        return int(self._parser.get_status_code())

    def on_message_complete(self) -> None:
        self._over.set_result(None)


class Link(Wire):
    """One WebSocket to the gateway, handshake and frames by hand."""

    async def open(self, url: str) -> Self:
        parts = urlsplit(url)
        lines = [f"GET {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}", "Sec-WebSocket-Version: 13", "", ""]
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await _connected(self, url)
        self.transport.write("\r\n".join(lines).encode())
        await self._opened  # what came with the handshake would be dropped
        return self

    def data_received(self, data: bytes) -> None:
        """The handshake's answer, and then what is read and forgotten."""
        if not self._opened.done():
            self._opened.set_result(None)

    def send(self, *frames: bytes) -> None:
        """In one text. A mask of zeros leaves it as it is."""
        text = b"\n".join(frames)
        self.transport.write(b"\x81" + _length(len(text)) + bytes(4) + text)


async def _connected(wire: _Wire, url: str) -> _Wire:
    parts = urlsplit(url)
    await asyncio.get_running_loop().create_connection(lambda: wire, str(parts.hostname), int(parts.port or 80))
    return wire


def _length(count: int) -> bytes:
    """RFC 6455, 5.2, with the bit that says masked."""
    if count < 126:
        return bytes([128 | count])
    return struct.pack("!BH", 128 | 126, count) if count < 1 << 16 else struct.pack("!BQ", 128 | 127, count)


class Calls:
    """Kept connections, by where they go."""

    def __init__(self) -> None:
        self._rested: dict[str, list[Call]] = {}

    async def post(self, url: str, body: bytes, take: Callable[[bytes], None]) -> int:
        """The answer's status."""
        rested = self._rested.setdefault(urlsplit(url).netloc, [])
        call = rested.pop() if rested else await _connected(Call(), url)
        await call.post(url, body, take)
        rested.append(call)
        return call.status


class Links(Generic[_Link]):
    """One for each address."""

    def __init__(self, kind: Callable[[], _Link]) -> None:
        self._kind = kind
        self._open: dict[str, asyncio.Future[_Link]] = {}

    async def to(self, url: str) -> _Link:
        if url not in self._open:
            self._open[url] = asyncio.ensure_future(self._kind().open(url))
        return await asyncio.shield(self._open[url])


class Events:
    """Of a stream whose pieces begin and end anywhere."""

    def __init__(self) -> None:
        self._kept = b""

    def of(self, piece: bytes) -> list[bytes]:
        """What each that is whole now says, but for [DONE]."""
        *events, self._kept = (self._kept + piece).split(b"\n\n")
        return [event[6:] for event in events if event != b"data: [DONE]"]


def completions_of(upstream: str) -> str:
    """"" where there is none."""
    return f"{upstream}/v1/chat/completions" if upstream else ""


class Answers:
    """A request's answer, by what the floor asks and tells."""

    def __init__(self, upstream: str) -> None:
        self._upstream = completions_of(upstream)
        self._calls, self._links = Calls(), Links(Link)

    async def answer(self, request: Envelope) -> Usage:
        identifier = msgspec.json.encode(request.request_id)
        head = b'{"request_id":' + identifier
        if not request.link:
            whole = await self._whole(request)
            await self._calls.post(request.endpoint, head + b',"data":' + whole + b"}", lambda _: None)
            return usage_in(whole)
        link = await self._links.to(request.link)
        link.send(b'{"type":"begin","request_id":' + identifier + b',"attempt":1}')
        if request.stream:
            between = head + b',"end":false,"data":'
            last = await self._stream(request, lambda events: link.send(*(between + event + b"}" for event in events)))
            link.send(head + b',"end":true}')
            return usage_in(last)
        whole = await self._whole(request)
        link.send(head + b',"end":true,"data":' + whole + b"}")
        return usage_in(whole)

    async def _whole(self, request: Envelope) -> bytes:
        if not self._upstream:
            return DEMO
        pieces: list[bytes] = []
        await self._calls.post(self._upstream, bytes(request.data), pieces.append)
        return b"".join(pieces)

    async def _stream(self, request: Envelope, send: Callable[[list[bytes]], None]) -> bytes:
        """Each piece's events at once, when it comes. Returns the last."""
        events, last = Events(), b"{}"

        def take(piece: bytes) -> None:
            nonlocal last
            if found := events.of(piece):
                last = found[-1]
                send(found)

        await self._calls.post(self._upstream, bytes(request.data), take)
        return last


def usage_in(answer: bytes) -> Usage:
    return msgspec.json.decode(answer, type=Completion).usage or Usage()


class Queue:
    """The floor's side of the broker."""

    def __init__(self, url: str, model: str) -> None:
        self._model = model
        client = quiet_client(url)
        self._consumer = client.subscribe(
            request_topic(model), subscription(model), consumer_type=pulsar.ConsumerType.Shared,
            initial_position=pulsar.InitialPosition.Earliest, receiver_queue_size=1,
        )  # fmt: skip
        self._records = client.create_producer(
            f"records-of-{model}", batching_enabled=True, batching_max_publish_delay_ms=5, block_if_queue_full=True
        )

    def receive(self, take: Callable[[pulsar.Message], None]) -> None:
        """From now on, by a thread of its own; `take` runs on the loop."""
        threading.Thread(target=self._receive, args=(asyncio.get_running_loop(), take), daemon=True).start()

    def _receive(self, loop: asyncio.AbstractEventLoop, take: Callable[[pulsar.Message], None]) -> None:
        while True:
            with contextlib.suppress(pulsar.Timeout):
                loop.call_soon_threadsafe(take, self._consumer.receive(RECEIVE_WITHIN_MS))

    def end(self, message: pulsar.Message, request_id: str, usage: Usage) -> None:
        self.record(msgspec.json.encode(Record(request_id, usage, self._model)), lambda: None)
        self.acknowledge(message)

    def record(self, record: bytes, confirmed: Callable[[], object]) -> None:
        """`confirmed` is called by a thread of the client's."""
        self._records.send_async(record, lambda result, _: confirmed())

    def acknowledge(self, message: pulsar.Message) -> None:
        self._consumer.acknowledge(message)


class Floor:
    def __init__(self, queue: Queue, answers: Answers, at_once: int) -> None:
        self._queue, self._answers, self._at_once = queue, answers, at_once
        self._received: asyncio.Queue[pulsar.Message] = asyncio.Queue()

    async def run(self) -> None:
        self._queue.receive(self._received.put_nowait)
        async with asyncio.TaskGroup() as group:
            for _ in range(self._at_once):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            message = await self._received.get()
            request = msgspec.json.decode(message.data(), type=Envelope)
            self._queue.end(message, request.request_id, await self._answers.answer(request))


def parsed(program: str, about: str | None, processes: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(program, description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of the broker")
    parser.add_argument("--model", required=True, help="whose topic it reads")
    parser.add_argument("--upstream", default="", help="default: a fixed answer")
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--processes", type=int, default=1, help=processes)
    return parser.parse_args()


def live(life: Coroutine[None, None, None]) -> None:
    """What goes wrong ends the process: a floor that lost a part of it would look cheap."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(life)
    except BaseException as error:
        print(f"the floor ended: {error!r}", flush=True)
        os._exit(1)


def main() -> None:
    given = parsed("python -m bench.floor", __doc__, "that share them")
    for _ in range(given.processes - 1):
        if not os.fork():  # before there is a client or a thread
            break
    live(_live(given.url, given.model, -(-given.at_once // given.processes), given.upstream))


async def _live(url: str, model: str, at_once: int, upstream: str) -> None:
    queue = Queue(url, model)
    print(READY, flush=True)
    await Floor(queue, Answers(upstream), at_once).run()


if __name__ == "__main__":
    main()
