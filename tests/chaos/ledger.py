"""Every request that was asked, and what its requester saw of the answer. Used from several threads."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

TOKENS = 10
TRIED_AGAIN_WITHIN_S = 1.5
WORD = re.compile(r"([tb])(\d+)")
NODE_OF = {"t": "A", "b": "B"}  # the test upstream's words and the local model's

Way = Literal["gateway", "direct"]
# refused: by the gateway itself, no node had it; broken: its connection, by the gateway's death; hung up: by its requester;
# unsent: the queue never confirmed it; unreachable: there was no gateway
Final = Literal["result", "error", "refused", "broken", "hung up", "unsent", "unreachable"]


@dataclass
class Attempt:
    """One computation of an answer, as far as its requester saw it."""

    node: str
    first_s: float
    last_s: float
    last: int = 0


@dataclass
class Asked:
    """Times are monotonic seconds."""

    tag: str
    way: Way
    stream: bool
    at_s: float
    gateway: int = -1
    request_id: str = ""
    sent_s: float = 0.0  # when the queue, or the gateway's first byte, confirmed it
    attempts: list[Attempt] = field(default_factory=list)
    final: Final | None = None
    error: dict[str, Any] | None = None
    ended_s: float = 0.0
    faults: list[str] = field(default_factory=list)
    repeats: list[tuple[float, str]] = field(default_factory=list)  # what came after its end, and was refused
    hang_up: Callable[[], None] | None = None

    def said(self, text: str) -> None:
        """A piece of the answer's text: a first word begins an attempt, any other one has to follow its predecessor."""
        now_s = time.monotonic()
        for letter, number in WORD.findall(text):
            self._word(NODE_OF[letter], int(number), now_s)

    def _word(self, node: str, number: int, now_s: float) -> None:
        if number == 0:
            self.attempts.append(Attempt(node, now_s, now_s))
            return
        for attempt in reversed(self.attempts):
            if attempt.node == node and attempt.last == number - 1:
                attempt.last, attempt.last_s = number, now_s
                return
        self.faults.append(f"word {number} of node {node} out of its turn")

    @property
    def complete(self) -> bool:
        return any(attempt.last == TOKENS - 1 for attempt in self.attempts)

    @property
    def seen(self) -> str:
        return " ".join(f"{attempt.node}0–{attempt.last}@{attempt.first_s - self.at_s:.1f}s" for attempt in self.attempts)


@dataclass
class Incident:
    """Something that was done to `who` (A, B, gateway 0, broker, …); `until_s` where its consequences last."""

    kind: str
    who: str
    from_s: float
    until_s: float = math.inf


class Ledger:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked: list[Asked] = []
        self.incidents: list[Incident] = []
        self.node_faults: list[str] = []
        self._direct: dict[str, Asked] = {}
        self._open: dict[str, Asked] = {}

    def add(self, way: Way, stream: bool, *, gateway: int = -1, request_id: str = "") -> Asked:
        with self.lock:
            asked = Asked(f"chaos-{len(self.asked)}", way, stream, time.monotonic(), gateway, request_id)
            self.asked.append(asked)
            self._open[asked.tag] = asked
            if way == "direct":
                self._direct[request_id] = asked
        return asked

    def end(self, asked: Asked, final: Final, error: dict[str, Any] | None = None) -> None:
        with self.lock:
            self._end(asked, final, error)

    def _end(self, asked: Asked, final: Final, error: dict[str, Any] | None) -> None:
        asked.final, asked.error, asked.ended_s, asked.hang_up = final, error, time.monotonic(), None
        self._open.pop(asked.tag, None)

    def open(self) -> list[Asked]:
        with self.lock:
            return list(self._open.values())

    def incident(self, kind: str, who: str, lasts_s: float = 0.0) -> Incident:
        now_s = time.monotonic()
        found = Incident(kind, who, now_s, now_s + lasts_s)
        self.incidents.append(found)
        return found

    # what the requesters' service sees

    def knows(self, request_id: str) -> bool:
        asked = self._direct.get(request_id)
        return asked is not None and asked.final is None

    def post(self, request_id: str, data: dict[str, Any]) -> bool:
        """False where it is answered already: the existing service has forgotten it."""
        with self.lock:
            asked = self._direct[request_id]
            if asked.final is not None:
                self._repeat(asked, "POST")
                return False
            if asked.stream and "error" not in data:
                asked.faults.append("a whole answer to a stream")
            self._take(asked, data, end=True)
            return True

    def frame(self, request_id: str, frame: dict[str, Any]) -> None:
        with self.lock:
            asked = self._direct.get(request_id)
            if asked is None:
                self.node_faults.append(f"a frame of a request that nobody asked: {request_id}")
            elif asked.final is not None:
                self._repeat(asked, "end frame" if frame["end"] else "frame")
            else:
                self._take(asked, frame.get("data"), end=frame["end"])

    def refused_post(self, request_id: str) -> None:
        with self.lock:
            if asked := self._direct.get(request_id):
                self._repeat(asked, "POST")

    @staticmethod
    def _repeat(asked: Asked, what: str) -> None:
        """A node tries a refused POST again for about a second: that counts as one."""
        now_s = time.monotonic()
        if what != "frame" and not (asked.repeats and now_s - asked.repeats[-1][0] < TRIED_AGAIN_WITHIN_S):
            asked.repeats.append((now_s, what))

    def _take(self, asked: Asked, data: dict[str, Any] | None, *, end: bool) -> None:
        error = (data or {}).get("error")
        if error is not None and not end:
            asked.faults.append("an error in a frame that is not the last")
        if data is not None and error is None:
            asked.said(text_of(data))
        if end:
            self._end(asked, "result" if error is None else "error", error)


def text_of(data: dict[str, Any]) -> str:
    """The text of a completion or of a chunk."""
    choice: dict[str, Any] = next(iter(data.get("choices") or []), {})
    return str((choice.get("message") or choice.get("delta") or {}).get("content") or "")
