"""The floor, and a node's promises in the fewest lines: `python -m bench.promises --url pulsar://… --model NAME`.

What a node owes to others, and the floor does not do: the queue's client and the model's in processes of their own, with typed
messages between them; a message that comes again is no other request; the body asked with the model's name; the answer looked at
before it is passed on, and its first and last token timed; a deadline; no error of one request ends another; the gateway's
receipt; a record with times; a line in the log; and the message acknowledged only once the queue has the record. Not here: tries,
limits, deaths, drains, troubles, pages, refusals, POSTs.

A node that costs less than this breaks a promise, or found a better way.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec
import pulsar

from backends.base import now_ms
from bench.floor import DEMO, READY, Calls, Envelope, Events, Link, Links, Queue, Usage, Wire, completions_of, live, parsed
from ipc.channel import Frames, frame

DEADLINE_S = 300.0
REMEMBERED = 10_000
LINES_TOGETHER = 50
TEXT = 0x81  # RFC 6455, 5.2: whole, in one frame
_Heard = TypeVar("_Heard")


class Task(msgspec.Struct):
    number: int
    request_id: str
    stream: bool
    link: str
    data: bytes


class Outcome(msgspec.Struct):
    number: int
    end: str
    usage: Usage
    sent_ms: float = 0.0
    first_ms: float = 0.0
    last_ms: float = 0.0
    answered_ms: float = 0.0


class Record(msgspec.Struct):
    request_id: str
    usage: Usage
    model: str
    outcome: str
    stream: bool
    timestamps_ms: dict[str, float]
    durations_ms: dict[str, float]
    others: str = "x" * 500


class Message(msgspec.Struct):
    content: str | None = None


class Choice(msgspec.Struct):
    message: Message | None = None
    delta: Message | None = None


class Seen(msgspec.Struct):
    """Of an answer, or of a stream's event."""

    choices: list[Choice] = []
    usage: Usage | None = None


class Said(msgspec.Struct):
    """By the gateway."""

    type: str = ""
    request_id: str = ""


_body, _seen, _said = msgspec.json.Decoder(dict[str, msgspec.Raw]), msgspec.json.Decoder(Seen), msgspec.json.Decoder(Said)


class Pipe(Wire, Generic[_Heard]):
    """Typed messages over a socket pair, framed as a node's are."""

    def __init__(self, kind: type[_Heard], hear: Callable[[_Heard], None]) -> None:
        self._frames, self._hear = Frames(msgspec.msgpack.Decoder(kind).decode), hear

    def say(self, message: Task | Outcome) -> None:
        self.transport.write(frame(message))

    def data_received(self, data: bytes) -> None:
        heard: list[_Heard] = []
        self._frames.feed(data, heard)
        for message in heard:
            self._hear(message)


async def _piped(pipe: Pipe[_Heard], end: socket.socket) -> None:
    await asyncio.get_running_loop().create_connection(lambda: pipe, sock=end)


@dataclass
class _Open:
    message: pulsar.Message
    request: Envelope
    received_ms: float
    dispatched_ms: float = 0.0


class Receiving:
    """One for each process that answers, with a share of the slots."""

    def __init__(self, queue: Queue, model: str, at_once: int) -> None:
        self.pipe = Pipe(Outcome, self._hear)
        self._queue, self._model, self._at_once = queue, model, at_once
        self._waiting: collections.deque[_Open] = collections.deque()
        self._open: dict[int, _Open] = {}
        self._ids: set[str] = set()
        self._ended: collections.OrderedDict[str, None] = collections.OrderedDict()
        self._last = self._running = 0
        self._lines: list[str] = []

    @property
    def load(self) -> int:
        return self._running + len(self._waiting)

    def take(self, message: pulsar.Message) -> None:
        request = msgspec.json.decode(message.data(), type=Envelope)
        if request.request_id in self._ended:
            self._queue.acknowledge(message)
        elif request.request_id not in self._ids:
            self._ids.add(request.request_id)
            self._waiting.append(_Open(message, request, now_ms()))
            self._hand_over()

    def _hand_over(self) -> None:
        while self._waiting and self._running < self._at_once:
            self._last += 1
            self._running += 1
            self._open[self._last] = opened = self._waiting.popleft()
            opened.dispatched_ms = now_ms()
            request = opened.request
            self.pipe.say(Task(self._last, request.request_id, request.stream, request.link, bytes(request.data)))

    def _hear(self, outcome: Outcome) -> None:
        opened = self._open[outcome.number]
        self._running -= 1
        loop, number = asyncio.get_running_loop(), outcome.number
        self._queue.record(self._record(opened, outcome), lambda: loop.call_soon_threadsafe(self._confirmed, number))
        self._log(opened, outcome)
        self._hand_over()

    def _record(self, opened: _Open, outcome: Outcome) -> bytes:
        at = {
            "published": opened.message.publish_timestamp(), "received": opened.received_ms, "dispatched": opened.dispatched_ms,
            "upstream_sent": outcome.sent_ms, "first_token": outcome.first_ms, "last_token": outcome.last_ms,
            "answered": outcome.answered_ms,
        }  # fmt: skip
        names = list(at)
        took = {name: round((at[name] - at[before]) * 1000) / 1000 for before, name in itertools.pairwise(names)}
        request = opened.request
        return msgspec.json.encode(Record(request.request_id, outcome.usage, self._model, outcome.end, request.stream, at, took))

    def _confirmed(self, number: int) -> None:
        opened = self._open.pop(number)
        self._queue.acknowledge(opened.message)
        self._ids.discard(opened.request.request_id)
        self._ended[opened.request.request_id] = None
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def _log(self, opened: _Open, outcome: Outcome) -> None:
        took_ms = outcome.answered_ms - opened.received_ms
        self._lines.append(f"{outcome.answered_ms:.0f} request {opened.request.request_id} {outcome.end} in {took_ms:.0f} ms\n")
        if len(self._lines) >= LINES_TOGETHER:
            sys.stderr.write("".join(self._lines))
            self._lines.clear()


class TalkingLink(Link):
    """A link whose other end is heard."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.receipts: dict[str, asyncio.Future[str]] = {}

    def data_received(self, data: bytes) -> None:
        if not self._opened.done():
            self._opened.set_result(None)
            return
        self._buffer += data
        while (text := self._next()) is not None:
            for line in filter(None, text.split(b"\n")):
                said = _said.decode(line)
                if said.type in ("taken", "gone") and (receipt := self.receipts.pop(said.request_id, None)):
                    receipt.set_result(said.type)

    def _next(self) -> bytes | None:
        """The next text, unmasked as a server's are; none is split over frames. b"" for anything else, as a ping is."""
        more = {126: 2, 127: 8}.get(self._buffer[1], 0) if len(self._buffer) > 1 else 0
        if len(self._buffer) < 2 + more:
            return None
        length = int.from_bytes(self._buffer[2 : 2 + more], "big") if more else self._buffer[1]
        end = 2 + more + length
        if len(self._buffer) < end:
            return None
        text = bytes(self._buffer[2 + more : end]) if self._buffer[0] == TEXT else b""
        del self._buffer[:end]
        return text


class Working:
    """Asks the model, and answers."""

    def __init__(self, upstream: str, model: str) -> None:
        self.pipe = Pipe(Task, self._hear)
        self._url, self._model = completions_of(upstream), msgspec.Raw(msgspec.json.encode(model))
        self._calls, self._links = Calls(), Links(TalkingLink)
        self._tasks: set[asyncio.Task[None]] = set()

    def _hear(self, task: Task) -> None:
        work = asyncio.create_task(self._work(task))
        self._tasks.add(work)
        work.add_done_callback(self._tasks.discard)

    async def _work(self, task: Task) -> None:
        outcome = Outcome(task.number, "answered", Usage())
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._answer(task, outcome)
        except Exception as error:
            outcome.end = repr(error)
        outcome.answered_ms = now_ms()
        self.pipe.say(outcome)

    async def _answer(self, task: Task, outcome: Outcome) -> None:
        link = await self._links.to(task.link)
        identifier = msgspec.json.encode(task.request_id)
        head = b'{"request_id":' + identifier
        link.send(b'{"type":"begin","request_id":' + identifier + b',"attempt":1}')
        outcome.sent_ms = now_ms()
        if task.stream:
            await self._stream(task, outcome, link, head + b',"end":false,"data":')
            last = head + b',"end":true}'
        else:
            last = head + b',"end":true,"data":' + await self._whole(task, outcome) + b"}"
        receipt = link.receipts[task.request_id] = asyncio.get_running_loop().create_future()
        link.send(last)
        if await receipt != "taken":
            raise ConnectionError("nobody took it")

    async def _whole(self, task: Task, outcome: Outcome) -> bytes:
        pieces: list[bytes] = []
        if self._url:
            await self._ask(task, pieces.append)
        whole = b"".join(pieces) if self._url else DEMO
        seen = _seen.decode(whole)
        if not seen.choices or seen.choices[0].message is None:
            raise ValueError("a completion without a message")
        outcome.usage = seen.usage or Usage()
        outcome.first_ms = outcome.last_ms = now_ms()
        return whole

    async def _stream(self, task: Task, outcome: Outcome, link: TalkingLink, head: bytes) -> None:
        events = Events()

        def take(piece: bytes) -> None:
            for event in events.of(piece):
                self._note(event, outcome)
                link.send(head + event + b"}")

        await self._ask(task, take)

    @staticmethod
    def _note(event: bytes, outcome: Outcome) -> None:
        seen = _seen.decode(event)
        outcome.usage = seen.usage or outcome.usage
        if seen.choices and seen.choices[0].delta is not None and seen.choices[0].delta.content:
            outcome.last_ms = now_ms()
            outcome.first_ms = outcome.first_ms or outcome.last_ms

    async def _ask(self, task: Task, take: Callable[[bytes], None]) -> None:
        fields = _body.decode(task.data)
        fields["model"], fields["stream"] = self._model, msgspec.Raw(b"true" if task.stream else b"false")
        status = await self._calls.post(self._url, msgspec.json.encode(fields), take)
        if status != 200:
            raise ConnectionError(f"HTTP status {status}")


def main() -> None:
    given = parsed("python -m bench.promises", __doc__, "that answer")
    pairs = [socket.socketpair() for _ in range(given.processes)]
    for _, end in pairs:  # before there is a client or a thread
        if not os.fork():
            live(_answer(given.upstream, given.model, end))
    live(_receive(given.url, given.model, given.at_once, [end for end, _ in pairs]))


async def _answer(upstream: str, model: str, end: socket.socket) -> None:
    await _piped(Working(upstream, model).pipe, end)
    await asyncio.Event().wait()


async def _receive(url: str, model: str, at_once: int, ends: list[socket.socket]) -> None:
    queue = Queue(url, model)
    receiving = [Receiving(queue, model, -(-at_once // len(ends))) for _ in ends]
    for each, end in zip(receiving, ends, strict=True):
        await _piped(each.pipe, end)
    queue.receive(lambda message: min(receiving, key=lambda one: one.load).take(message))
    print(READY, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    main()
