"""A load generator that costs next to nothing: `python -m bench.load --url http://127.0.0.1:8081 --model static -c 64`.

    closed loop   -c 64          so many in flight, the next is sent when an answer is there
    open loop     --rate 500     so many a second, however slow the answers are; a latency starts when its request was due

Every answer's text is checked. Requests that were due in the window count (`--seconds`, after `--warm`), and answers that
came in it. On its output, a line each: `from` and `to` when the window begins and ends, then the report as JSON.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import socket
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec

from bench import http11
from bench.stats import Spread, spread
from bench.wire import Loop, Wire
from tests.real.upstream.ask import Ask

PATH = "/v1/chat/completions"
PAUSE_S = 0.1  # of a closed loop's place whose request failed
SPREAD_OVER = 0.8  # of the warm-up: requests that all start at once would stay in step


class Plan(msgspec.Struct, frozen=True):
    """What to send, and how. model: for the server; mock: for the mock upstream behind it, `bench/mock.py`.

    expect: the text of a right answer. prompt_bytes: how long the message is. timeout_s: after the window's end.
    images: how many images of `prompt_bytes` each, as data URLs, go along instead of a long text.
    """

    url: str
    model: str
    expect: str
    mock: str = ""
    stream: bool = False
    in_flight: int = 1
    rate: float = 0.0
    seconds: float = 10.0
    warm_s: float = 2.0
    timeout_s: float = 30.0
    prompt_bytes: int = 500
    images: int = 0

    @property
    def body(self) -> bytes:
        text = ("word " * (self.prompt_bytes // 5 + 1))[: self.prompt_bytes]
        content: object = text
        if self.images:
            image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * self.prompt_bytes}}
            content = [{"type": "text", "text": "What is this?"}, *[image] * self.images]
        asked = {"model": self.model, "messages": [{"role": "user", "content": content}], "stream": self.stream}
        return json.dumps(asked | ({"mock": self.mock} if self.mock else {})).encode()


class Report(msgspec.Struct, frozen=True):
    """What came of it. answered_in_window: of a stream counts the part that came in it. latency: whole answers, or streams to
    their end. first_token, gap: of streams. All in ms."""

    asked: int
    right: int
    failures: dict[str, int]
    answered_in_window: float
    window_s: float
    latency_ms: Spread
    first_token_ms: Spread
    gap_ms: Spread

    @property
    def per_s(self) -> float:
        return self.answered_in_window / self.window_s

    @property
    def right_percent(self) -> float:
        return 100 * self.right / self.asked if self.asked else 0.0


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    error: msgspec.Raw | None = None


_chunks = msgspec.json.Decoder(_Chunk)


class Requester(Wire):
    """One connection, with one request at a time on it; `ended` is told what became of it."""

    def __init__(self, loop: Loop, connection: socket.socket, load: Load) -> None:
        super().__init__(loop, connection)
        self._load, self._reader = load, http11.ResponseReader()
        self.due_s = self.first_s = self.last_s = 0.0
        self.gaps_s: list[float] = []
        self._payload: list[bytes] = []
        self._kept = b""  # half an event
        self._text: list[str] = []
        self._is_done = False
        self.is_asking = False

    def ask(self, request: bytes, due_s: float) -> None:
        self.due_s, self.first_s, self.is_asking, self._is_done = due_s, 0.0, True, False
        self.gaps_s, self._payload, self._text, self._kept = [], [], [], b""
        self._reader.reset()
        self.send(request)

    def received(self, data: bytes) -> None:
        payload = self._reader.feed(data)
        if self._load.plan.stream and self._reader.status == 200:
            self._take_events(payload)
        else:
            self._payload.append(payload)
        if self._reader.is_complete:
            self.is_asking = False
            self._load.ended(self, self._failure())

    def lost(self) -> None:
        if self.is_asking:
            self.is_asking = False
            self._load.ended(self, "lost")

    def _take_events(self, payload: bytes) -> None:
        *events, self._kept = (self._kept + payload).split(b"\n\n")
        now_s = time.monotonic()
        before = len(self._text)
        for event in events:
            if event == b"data: [DONE]":
                self._is_done = True
            elif event.startswith(b"data: ") and (text := _text_of(event[6:])):
                self._text.append(text)
                if not self.first_s:
                    self.first_s = now_s
                else:
                    self.gaps_s.append(now_s - self.last_s)
                self.last_s = now_s
        self._load.took_pieces(len(self._text) - before, now_s)

    def _failure(self) -> str:
        """"" of a right answer."""
        if self._reader.status != 200:
            return f"status {self._reader.status}"
        if self._load.plan.stream:
            is_right = self._is_done and "".join(self._text) == self._load.plan.expect
        else:
            is_right = self._load.expected_json in b"".join(self._payload)
        return "" if is_right else "wrong answer"


def _text_of(event: bytes) -> str:
    chunk = _chunks.decode(event)
    return "".join(choice.delta.content or "" for choice in chunk.choices)


class Load:
    def __init__(self, plan: Plan, loop: Loop, say: Callable[[str], None]) -> None:
        self.plan, self._loop, self._say = plan, loop, say
        self.expected_json = json.dumps(plan.expect).encode()
        parts = urlsplit(plan.url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._request = http11.post(PATH, parts.netloc, plan.body)
        self._from_s = time.monotonic() + plan.warm_s
        self._to_s = self._from_s + plan.seconds
        self._idle: list[Requester] = []
        self._asked = self._right = self._in_flight = 0
        self._answered, self._piece = 0.0, 1 / len(plan.expect.split(" "))
        self._failures: Counter[str] = Counter()
        self._latencies_ms, self._first_ms, self._gaps_ms = array("d"), array("d"), array("d")

    def run(self) -> Report:
        start_s, spread_s = time.monotonic(), SPREAD_OVER * self.plan.warm_s
        if self.plan.rate:
            self._due(start_s, 0)
        else:
            for number in range(self.plan.in_flight):
                self._loop.at(start_s + spread_s * number / self.plan.in_flight, self._ask_now)
        self._loop.at(self._from_s, self._begin)
        self._loop.at(self._to_s, self._end)
        self._loop.at(self._to_s + self.plan.timeout_s, self._give_up)
        self._loop.run()
        return Report(
            self._asked, self._right, dict(self._failures), self._answered, self._to_s - self._from_s,
            spread(self._latencies_ms), spread(self._first_ms), spread(self._gaps_ms),
        )  # fmt: skip

    def ended(self, requester: Requester, failure: str) -> None:
        """A request came to its end; "" is a right answer."""
        now_s = time.monotonic()
        self._in_flight -= 1
        self._count(requester, failure, now_s)
        if requester.is_open:
            self._idle.append(requester)
        if now_s < self._to_s:
            if not self.plan.rate:
                self._ask_next(failure, now_s)
        elif not self._in_flight:
            self._loop.is_over = True

    def took_pieces(self, count: int, now_s: float) -> None:
        """Of a stream, each a word of its text."""
        if self._is_in_window(now_s):
            self._answered += count * self._piece

    def _count(self, requester: Requester, failure: str, now_s: float) -> None:
        if not failure and not self.plan.stream and self._is_in_window(now_s):
            self._answered += 1
        if not self._is_in_window(requester.due_s):
            return
        if failure:
            self._failures[failure] += 1
            return
        self._right += 1
        self._latencies_ms.append(1000 * (now_s - requester.due_s))
        if self.plan.stream:
            self._first_ms.append(1000 * (requester.first_s - requester.due_s))
            self._gaps_ms.extend([1000 * gap_s for gap_s in requester.gaps_s])

    def _is_in_window(self, at_s: float) -> bool:
        return self._from_s <= at_s < self._to_s

    def _due(self, start_s: float, number: int) -> None:
        """The open loop's next request, and the timer for the one after it."""
        due_s = start_s + number / self.plan.rate
        if due_s < self._to_s:
            self._loop.at(due_s, functools.partial(self._ask_and_go_on, start_s, number))

    def _ask_and_go_on(self, start_s: float, number: int) -> None:
        self._ask(start_s + number / self.plan.rate)
        self._due(start_s, number + 1)

    def _ask_now(self) -> None:
        self._ask(time.monotonic())

    def _ask(self, due_s: float) -> None:
        self._asked += self._is_in_window(due_s)
        self._in_flight += 1
        requester = self._idle.pop() if self._idle else None
        while requester is not None and not requester.is_open:  # the server closed it meanwhile
            requester = self._idle.pop() if self._idle else None
        try:
            if requester is None:
                requester = Requester(self._loop, socket.create_connection(self._address, 5), self)
        except OSError:
            self._refused(due_s)
            return
        requester.ask(self._request, due_s)

    def _refused(self, due_s: float) -> None:
        self._in_flight -= 1
        if self._is_in_window(due_s):
            self._failures["refused"] += 1
        if not self.plan.rate:
            self._ask_next("refused", time.monotonic())

    def _ask_next(self, failure: str, now_s: float) -> None:
        if failure:
            self._loop.at(now_s + PAUSE_S, self._ask_now)
        else:
            self._ask(now_s)

    def _begin(self) -> None:
        self._say("from")

    def _end(self) -> None:
        self._say("to")
        if not self._in_flight:
            self._loop.is_over = True

    def _give_up(self) -> None:
        self._failures["timeout"] += self._asked - self._right - self._failures.total()
        self._loop.is_over = True


def main() -> None:
    plan = _plan(sys.argv[1:])
    gc.freeze()
    gc.disable()
    report = Load(plan, Loop(), lambda word: print(word, flush=True)).run()
    print(msgspec.json.encode(report).decode(), flush=True)


def _plan(arguments: list[str]) -> Plan:
    """As JSON, from the bench; or by options, by hand."""
    if len(arguments) == 1 and arguments[0].startswith("{"):
        return msgspec.json.decode(arguments[0], type=Plan)
    parser = argparse.ArgumentParser("python -m bench.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", default="mock")
    parser.add_argument("--mock", default="", help="how the mock upstream is to answer")
    parser.add_argument("--expect", default="", help="the text of a right answer; default: the mock's")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("-c", "--in-flight", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--warm", dest="warm_s", type=float, default=2.0)
    given = parser.parse_args(arguments)
    given.expect = given.expect or Ask({}, given.mock or given.model).text
    return msgspec.convert(vars(given), Plan)


if __name__ == "__main__":
    main()
