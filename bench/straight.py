"""A load straight into the queue, which takes the answers itself: what a node costs without a gateway.

It publishes with Pulsar's client, and nodes answer to its one port, by POST as to any service, or over a link as to our
gateway (docs/api.md): `begin` is told `go`, an end frame `taken`, at once. Whole answers only, each of them checked. A closed
loop with more in flight than there are slots is a queue that is never empty. Arguments and output are as of bench/load.py,
in JSON.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import itertools
import os
import socket
import struct
import sys
import time

import msgspec
import pulsar

from bench import http11
from bench.client import quiet_client
from bench.plan import Plan, Report, Tally, say, text_in_json
from bench.wire import Listener, Loop, Wire
from messaging.topics import request_topic

OK = http11.response("200 OK", b'{"status":"ok"}')
WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
TEXT, PING, PONG = 1, 9, 10
FILL_AT_ONCE = 500


class _Frame(msgspec.Struct):
    request_id: str
    type: str = ""
    attempt: int = 0
    data: msgspec.Raw = msgspec.Raw(b"")


_frames = msgspec.json.Decoder(_Frame)


class Node(Wire):
    """A connection from a node: POSTs, until it asks for a WebSocket."""

    def __init__(self, loop: Loop, connection: socket.socket, load: Straight) -> None:
        super().__init__(loop, connection)
        self._load, self._requests = load, http11.RequestReader()
        self._is_link = False
        self._kept = b""

    def received(self, data: bytes) -> None:
        if self._is_link:
            self._take_frames(data)
            return
        for head, body in self._requests.feed(data):
            key = _websocket_key(head)
            if key:
                self._is_link = True
                self.send(_accepted(key))
            else:
                self.send(OK)
                answer = _frames.decode(body)
                self._load.answered(answer.request_id, bytes(answer.data))

    def _take_frames(self, data: bytes) -> None:
        data, at = self._kept + data, 0
        while (found := _frame(data, at)) is not None:
            opcode, payload, at = found
            if opcode == TEXT:
                for frame in payload.split(b"\n"):
                    self._take(_frames.decode(frame))
            elif opcode == PING:
                self.send(bytes([0x80 | PONG, len(payload)]) + payload)
        self._kept = data[at:]

    def _take(self, frame: _Frame) -> None:
        if frame.type == "begin":
            self._say({"type": "go", "request_id": frame.request_id, "attempt": frame.attempt})
        else:
            self._say({"type": "taken", "request_id": frame.request_id})
            self._load.answered(frame.request_id, bytes(frame.data))

    def _say(self, said: dict[str, object]) -> None:
        text = msgspec.json.encode(said)
        self.send(bytes([0x80 | TEXT, len(text)]) + text)  # shorter than 126 bytes: ids here are


def _websocket_key(head: bytes) -> bytes:
    """b"" where the request is for no WebSocket."""
    low = head.lower()
    at = low.find(b"sec-websocket-key:")
    return head[at + 18 :].split(b"\r\n", 1)[0].strip() if at >= 0 else b""


def _accepted(key: bytes) -> bytes:
    accept = base64.b64encode(hashlib.sha1(key + WEBSOCKET_GUID).digest())
    return b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"


def _frame(data: bytes, at: int) -> tuple[int, bytes, int] | None:
    """A masked frame: its opcode, its payload, and where the next begins. None: it is not all there."""
    if len(data) < at + 2:
        return None
    opcode, length, start = data[at] & 15, data[at + 1] & 127, at + 2
    if length >= 126:
        size = 2 if length == 126 else 8
        if len(data) < start + size:
            return None
        length, start = struct.unpack_from("!H" if size == 2 else "!Q", data, start)[0], start + size
    end = start + 4 + length
    return (opcode, _unmasked(data[start + 4 : end], data[start : start + 4]), end) if len(data) >= end else None


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    masks = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(masks, "big")).to_bytes(size, "big")


class Straight:
    def __init__(self, plan: Plan, loop: Loop) -> None:
        self._plan, self._loop, self._tally = plan, loop, Tally(plan)
        self._expected = text_in_json(plan.expect)
        self._numbers = itertools.count()
        self._due_s: dict[str, float] = {}
        listener = Listener(loop, lambda loop, connection: Node(loop, connection, self))
        address, link = f"http://127.0.0.1:{listener.port}/res", f"ws://127.0.0.1:{listener.port}/res/link"
        metadata = {"workernode": {"link": link, "v": 1}} if plan.answers == "link" else {}
        rest = {"stream": False, "endpoint": address, "data": msgspec.Raw(plan.body), "metadata": metadata}
        self._rest = msgspec.json.encode(rest)[1:]
        client = quiet_client(plan.url)
        self._producer = client.create_producer(request_topic(plan.model), max_pending_messages=10_000, block_if_queue_full=True)

    def run(self) -> Report:
        """The window is counted from when all that is to be in flight was sent."""
        self._fill()
        self._loop.run()
        return self._tally.report()

    def answered(self, request_id: str, data: bytes) -> None:
        now_s = time.monotonic()
        due_s = self._due_s.pop(request_id, None)
        if due_s is None:
            self._tally.failed(now_s, "answered twice, or not asked")
        elif self._expected in data:
            self._tally.answered(due_s, now_s)
        else:
            self._tally.failed(due_s, "wrong answer")
        if not self._tally.to_s or now_s < self._tally.to_s:
            self._ask()
        elif not self._due_s:
            self._loop.end()

    def _fill(self) -> None:
        for _ in range(min(FILL_AT_ONCE, self._plan.in_flight - len(self._due_s))):
            self._ask()
        if len(self._due_s) < self._plan.in_flight:
            self._loop.at(time.monotonic(), self._fill)
            return
        self._producer.flush()
        self._tally.start()
        self._loop.at(self._tally.from_s, lambda: say("from"))
        self._loop.at(self._tally.to_s, self._end)
        self._loop.at(self._tally.to_s + self._plan.timeout_s, self._loop.end)

    def _ask(self) -> None:
        request_id, due_s = f"bench-{next(self._numbers)}", time.monotonic()
        self._due_s[request_id] = due_s
        self._tally.asked(due_s)
        self._producer.send_async(b'{"request_id":"%b",%b' % (request_id.encode(), self._rest), _confirmed)

    def _end(self) -> None:
        say("to")
        if not self._due_s:
            self._loop.end()


def _confirmed(result: pulsar.Result, _: pulsar.MessageId) -> None:
    if result != pulsar.Result.Ok:
        print(f"a request was not published: {result}", file=sys.stderr, flush=True)
        os._exit(1)


def main() -> None:
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    gc.freeze()
    gc.disable()
    say(msgspec.json.encode(Straight(plan, Loop()).run()).decode())
    sys.stdout.flush()
    os._exit(0)  # threads of Pulsar's client would race with the interpreter's end


if __name__ == "__main__":
    main()
