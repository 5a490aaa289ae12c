"""A mock upstream that costs next to nothing: `python -m bench.mock [--port 0]`; its first line is its address.

It speaks the tests' upstream's normal answers (tests/real/upstream, whose words and JSON these are): a request says in
`mock` of its body, or else in `model`, how it wants to be answered:

    {"model": "mock?latency=100ms&gap=20ms&tokens=200", "messages": […], "stream": true}

The bytes of each such answer are made once. The text is `t0 t1 t2 …`, so that what is lost, doubled or reordered shows.
GET /stats: requests received, in flight now, and at most.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import socket
import time
from dataclasses import asdict, dataclass

import msgspec

from bench import http11
from bench.wire import Listener, Loop, Wire
from tests.real.upstream.ask import Ask, seconds
from tests.real.upstream.streams import chunk, ending, event, whole_object

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Asked(msgspec.Struct):
    """What matters of a request."""

    mock: str = ""
    model: str = ""
    stream: bool = False
    stream_options: dict[str, bool] | None = None


@dataclass(frozen=True)
class Answer:
    """The bytes to send: the first after `latency_s`, each other `gap_s` after the one before."""

    latency_s: float
    gap_s: float
    pieces: tuple[bytes, ...]


@dataclass
class Stats:
    received: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0


def answer_to(asked: Asked) -> Answer:
    with_usage = bool((asked.stream_options or {}).get("include_usage"))
    return _prepared(asked.mock or asked.model, asked.model, asked.stream, with_usage)


@functools.lru_cache(maxsize=1000)
def _prepared(behaviour: str, model: str, stream: bool, with_usage: bool) -> Answer:
    ask = Ask({"model": model, "stream": stream, "stream_options": {"include_usage": with_usage}, "messages": []}, behaviour)
    latency_s, gap_s = seconds(ask.params.get("latency", "0")), seconds(ask.params.get("gap", "0"))
    if not stream:
        body = json.dumps(whole_object(ask)).encode()
        return Answer(latency_s + (ask.tokens - 1) * gap_s, 0.0, (http11.response("200 OK", body),))
    pieces = [http11.chunk(event(chunk(ask, {"content": word}))) for word in ask.words]
    pieces[0] = STREAM_HEAD + http11.chunk(event(chunk(ask, {"role": "assistant", "content": ""}))) + pieces[0]
    pieces[-1] += b"".join(map(http11.chunk, ending(ask))) + http11.chunk(b"")
    return Answer(latency_s, gap_s, tuple(pieces))


class Client(Wire):
    """One connection, one request at a time."""

    def __init__(self, loop: Loop, connection: socket.socket, stats: Stats) -> None:
        super().__init__(loop, connection)
        self._stats, self._reader = stats, http11.RequestReader()
        self._asked = msgspec.json.Decoder(Asked)
        self._is_answering = False

    def received(self, data: bytes) -> None:
        for head, body in self._reader.feed(data):
            if head.startswith(b"POST"):
                self._answer(answer_to(self._asked.decode(body)))
            else:
                self.send(http11.response("200 OK", json.dumps(asdict(self._stats)).encode()))
        if self._reader.expects_continue:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def lost(self) -> None:
        self._ended()

    def _answer(self, answer: Answer) -> None:
        stats, self._is_answering = self._stats, True
        stats.received += 1
        stats.in_flight += 1
        stats.peak_in_flight = max(stats.peak_in_flight, stats.in_flight)
        if answer.latency_s or len(answer.pieces) > 1:
            due_s = time.monotonic() + answer.latency_s
            self._loop.at(due_s, functools.partial(self._send_due, answer, due_s, 0))
        else:
            self.send(answer.pieces[0])
            self._ended()

    def _send_due(self, answer: Answer, first_s: float, at: int) -> None:
        """The piece that is due; comes again for the rest: a late one delays no other."""
        if not self.is_open:
            return
        self.send(answer.pieces[at])
        at += 1
        if at == len(answer.pieces):
            self._ended()
        else:
            self._loop.at(first_s + at * answer.gap_s, functools.partial(self._send_due, answer, first_s, at))

    def _ended(self) -> None:
        if self._is_answering:
            self._is_answering = False
            self._stats.in_flight -= 1


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.mock", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    port = parser.parse_args().port
    loop, stats = Loop(), Stats()
    listener = Listener(loop, lambda loop, connection: Client(loop, connection, stats), port)
    print(f"http://127.0.0.1:{listener.port}", flush=True)
    gc.freeze()
    gc.disable()  # nothing here is in a cycle but a connection with its timers, for as long as it is used
    loop.run()


if __name__ == "__main__":
    main()
