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
import socket
import sys
import time
from urllib.parse import urlsplit

import msgspec

from bench import http11
from bench.plan import Plan, Report, Tally, say, text_in_json
from bench.wire import Loop, Wire
from tests.real.upstream.ask import Ask

PATH = "/v1/chat/completions"
PAUSE_S = 0.1  # of a closed loop's place whose request failed
READ_STREAMS_EACH_S = 0.001  # by which their times may be wrong, with and without a node
SPREAD_OVER = 0.8  # of the warm-up: requests that all start at once would stay in step


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
        self._load.tally.took_pieces(len(self._text) - before, now_s)

    def _failure(self) -> str:
        """"" of a right answer."""
        if self._reader.status != 200:
            return f"status {self._reader.status}"
        if self._load.plan.stream:
            is_right = self._is_done and "".join(self._text) == self._load.plan.expect
        else:
            is_right = self._load.expected in b"".join(self._payload)
        return "" if is_right else "wrong answer"


def _text_of(event: bytes) -> str:
    chunk = _chunks.decode(event)
    return "".join(choice.delta.content or "" for choice in chunk.choices)


class Load:
    def __init__(self, plan: Plan, loop: Loop) -> None:
        self.plan, self._loop, self.tally = plan, loop, Tally(plan)
        self.expected = text_in_json(plan.expect)
        parts = urlsplit(plan.url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._request = http11.post(PATH, parts.netloc, plan.body)
        self._idle: list[Requester] = []
        self._in_flight = 0

    def run(self) -> Report:
        self.tally.start()
        start_s, spread_s = time.monotonic(), SPREAD_OVER * self.plan.warm_s
        if self.plan.rate:
            self._due(start_s, 0)
        else:
            for number in range(self.plan.in_flight):
                self._loop.at(start_s + spread_s * number / self.plan.in_flight, self._ask_now)
        self._loop.at(self.tally.from_s, lambda: say("from"))
        self._loop.at(self.tally.to_s, self._end)
        self._loop.at(self.tally.to_s + self.plan.timeout_s, self._loop.end)
        self._loop.run()
        return self.tally.report()

    def ended(self, requester: Requester, failure: str) -> None:
        """A request came to its end; "" is a right answer."""
        now_s = time.monotonic()
        self._in_flight -= 1
        if failure:
            self.tally.failed(requester.due_s, failure)
        else:
            self.tally.answered(requester.due_s, now_s)
            if self.plan.stream:
                self.tally.streamed(requester.due_s, requester.first_s, requester.gaps_s)
        if requester.is_open:
            self._idle.append(requester)
        if now_s < self.tally.to_s:
            if not self.plan.rate:
                self._ask_next(failure, now_s)
        elif not self._in_flight:
            self._loop.end()

    def _due(self, start_s: float, number: int) -> None:
        """The open loop's next request, and the timer for the one after it."""
        due_s = start_s + number / self.plan.rate
        if due_s < self.tally.to_s:
            self._loop.at(due_s, functools.partial(self._ask_and_go_on, start_s, number))

    def _ask_and_go_on(self, start_s: float, number: int) -> None:
        self._ask(start_s + number / self.plan.rate)
        self._due(start_s, number + 1)

    def _ask_now(self) -> None:
        self._ask(time.monotonic())

    def _ask_next(self, failure: str, now_s: float) -> None:
        if failure:
            self._loop.at(now_s + PAUSE_S, self._ask_now)
        else:
            self._ask(now_s)

    def _ask(self, due_s: float) -> None:
        self.tally.asked(due_s)
        try:
            requester = self._idle_one() or Requester(self._loop, socket.create_connection(self._address, 5), self)
        except OSError:
            self.tally.failed(due_s, "refused")
            if not self.plan.rate:
                self._ask_next("refused", time.monotonic())
            return
        self._in_flight += 1
        requester.ask(self._request, due_s)

    def _idle_one(self) -> Requester | None:
        while self._idle:
            requester = self._idle.pop()
            if requester.is_open:  # the server may have closed it meanwhile
                return requester
        return None

    def _end(self) -> None:
        say("to")
        if not self._in_flight:
            self._loop.end()


def main() -> None:
    plan = _plan(sys.argv[1:])
    gc.freeze()
    gc.disable()
    loop = Loop(READ_STREAMS_EACH_S if plan.stream else 0.0)
    say(msgspec.json.encode(Load(plan, loop).run()).decode())


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
