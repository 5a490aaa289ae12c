"""What a load sends, and what came of it: shared by the loads, and by those who start them."""

from __future__ import annotations

import json
import time
from array import array
from collections import Counter
from collections.abc import Callable

import msgspec

from bench.stats import Spread, spread, steady_rate


class Plan(msgspec.Struct, frozen=True):
    """What to send, and how.

    url: of the server, or of the broker. model: for it. mock: for the mock upstream behind it, bench/mock.py. expect: the
    text of a right answer. A closed loop with so many `in_flight`, or an open one at a `rate` a second. timeout_s: after the
    window's end. images: so many of `prompt_bytes` each go along, as data URLs, instead of a long text. answers: how a node
    is to answer a load that is its requester too. wave: as many answers may come at once.
    """

    url: str = ""
    model: str = ""
    expect: str = ""
    mock: str = ""
    stream: bool = False
    in_flight: int = 1
    rate: float = 0.0
    seconds: float = 10.0
    warm_s: float = 2.0
    timeout_s: float = 30.0
    prompt_bytes: int = 500
    images: int = 0
    answers: str = "link"
    wave: int = 1

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
    """What came of it. asked, right: of those that were due in the window. answered_in_window: of a stream counts the part that
    came in it. steady_per_s: answers a second, between two of the same place in their waves. latency: whole answers, or streams
    to their end. first_token, gap: of streams. All in ms."""

    asked: int
    right: int
    failures: dict[str, int]
    answered_in_window: float
    window_s: float
    steady_per_s: float | None
    latency_ms: Spread
    first_token_ms: Spread
    gap_ms: Spread

    @property
    def per_s(self) -> float:
        return self.answered_in_window / self.window_s

    @property
    def right_percent(self) -> float:
        return 100 * self.right / self.asked if self.asked else 0.0


class Tally:
    """Counts what is due in the window, and what comes in it. The window begins `warm_s` after `start`."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._piece = plan, 1 / len(plan.expect.split(" "))
        self._asked = self._right = 0
        self._answered = 0.0
        self._failures: Counter[str] = Counter()
        self._times_s, self._latencies_ms, self._first_ms, self._gaps_ms = array("d"), array("d"), array("d"), array("d")
        self.from_s = self.to_s = 0.0

    def start(self) -> None:
        self.from_s = time.monotonic() + self._plan.warm_s
        self.to_s = self.from_s + self._plan.seconds

    def asked(self, due_s: float) -> None:
        self._asked += self._is_in_window(due_s)

    def answered(self, due_s: float, now_s: float) -> None:
        """Rightly."""
        if self._is_in_window(now_s):
            self._times_s.append(now_s)
            self._answered += not self._plan.stream
        if self._is_in_window(due_s):
            self._right += 1
            self._latencies_ms.append(1000 * (now_s - due_s))

    def streamed(self, due_s: float, first_s: float, gaps_s: list[float]) -> None:
        """Of a stream that was answered."""
        if self._is_in_window(due_s):
            self._first_ms.append(1000 * (first_s - due_s))
            self._gaps_ms.extend([1000 * gap_s for gap_s in gaps_s])

    def took_pieces(self, count: int, now_s: float) -> None:
        """Of a stream, each a word of its text."""
        if self._is_in_window(now_s):
            self._answered += count * self._piece

    def failed(self, due_s: float, why: str) -> None:
        if self._is_in_window(due_s):
            self._failures[why] += 1

    def report(self) -> Report:
        """What has neither come nor failed by now is late."""
        late = max(0, self._asked - self._right - self._failures.total())
        failures = dict(self._failures) | ({"timeout": late} if late else {})
        return Report(
            self._asked, self._right, failures, round(self._answered, 3), self._plan.seconds,
            steady_rate(self._times_s, self._plan.wave),
            spread(self._latencies_ms), spread(self._first_ms), spread(self._gaps_ms),
        )  # fmt: skip

    def _is_in_window(self, at_s: float) -> bool:
        return self.from_s <= at_s < self.to_s


def text_in_json(text: str) -> bytes:
    """What a right answer holds somewhere."""
    return json.dumps(text).encode()


def say(word: str) -> None:
    """To who started this load: `from` and `to`, when the window begins and ends."""
    print(word, flush=True)


Say = Callable[[str], None]
