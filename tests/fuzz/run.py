"""A real child between a server that answers anything and requesters that note what they get."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ipc.messages import FromChild, Outcome
from tests.fuzz.answers import Case, case
from tests.fuzz.checks import Wrong, check
from tests.fuzz.server import Server
from tests.real.crew import Backends, settings, task
from tests.real.link_gateway import LinkGateway
from tests.real.requester import Requester

AT_ONCE = 48
TTL_S = 12.0
MARGIN_S = 15.0  # over the deadline, for a machine that is short of everything
AGAIN = 3
# What an idle connection's end looks like that crosses with the next request on it, and a machine that stands still.
PASSING = {"upstream_reset", "upstream_timeout"}
BUG_WORDS = (b"Traceback", b"hit a bug", b"Exception in")


@dataclass
class _Flying:
    case: Case
    request_id: str
    deadline_at_s: float
    times: int
    said: list[FromChild] = field(default_factory=list)


@dataclass
class Result:
    """wrong: (number of the case, what); ends: how often each; again: cases that were asked once more;
    overtaken: requests for which an earlier answer's leftovers were taken."""

    wrong: list[tuple[int, str]] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    again: int = 0
    overtaken: int = 0
    took_s: float = 0.0

    @property
    def answers(self) -> int:
        return sum(self.ends.values())


class Fuzzed:
    """`with Fuzzed(seed) as fuzzed: fuzzed.ask(range(1000))`."""

    def __init__(self, seed: int, at_once: int = AT_ONCE) -> None:
        self._seed, self._at_once = seed, at_once
        self._flying: dict[int, _Flying] = {}
        self._over: set[int] = set()
        self.result = Result()

    def __enter__(self) -> Fuzzed:
        self._stack = contextlib.ExitStack()
        self._log = self._stack.enter_context(_errors_to_file())
        self._server = self._stack.enter_context(Server())
        self._requester, self._gateway = self._stack.enter_context(Requester()), self._stack.enter_context(LinkGateway())
        given = settings(self._server.url, FIRST_TOKEN_TIMEOUT_S="4", READ_TIMEOUT_S="3", CHILD_MEMORY_LIMIT_MB="4096")
        self._backends = self._stack.enter_context(Backends(given, room=self._at_once))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ask(self, numbers: Iterable[int]) -> Result:
        """Each once its turn comes; stops early where the child dies."""
        started_s, left = time.monotonic(), iter(numbers)
        while not self._backends.dead:
            while len(self._flying) < self._at_once and (number := next(left, None)) is not None:
                self._send(case(self._seed, number))
            if not self._flying:
                break
            self._turn()
        self._look_behind()
        self.result.took_s += time.monotonic() - started_s
        return self.result

    def _send(self, found: Case, times: int = 1) -> None:
        self._server.cases[found.number] = found
        fields: dict[str, Any] = {"fuzz": found.number}
        if found.usage:
            fields["stream_options"] = {"include_usage": True}
        asked = task(self._gateway.url if found.by_link else self._requester, stream=found.stream, ttl_s=TTL_S, **fields)
        # No fast answer waits for a slow registration here: the ids are known.
        asked = msgspec.structs.replace(asked, received_at_s=asked.received_at_s - 1)
        self._flying[asked.number] = _Flying(found, asked.request_id, asked.deadline_at_s, times)
        self._backends.send(asked)

    def _turn(self) -> None:
        self._backends.turn(0.01)
        said, self._backends.said = self._backends.said, []
        for _, message, _ in said:
            self._hear(message)
        now_s = time.monotonic()
        for number, flying in list(self._flying.items()):
            if now_s > flying.deadline_at_s + MARGIN_S:
                self._wrong(flying.case, f"no end {MARGIN_S:g} s after its deadline")
                del self._flying[number]

    def _hear(self, message: FromChild) -> None:
        number = getattr(message, "number", None)
        if number is None:
            return
        if number in self._over or number not in self._flying:
            self.result.wrong.append((-1, f"said of a request that is over: {message}"))
            return
        self._flying[number].said.append(message)
        if isinstance(message, Outcome):
            self._over.add(number)
            self._judge(self._flying.pop(number))

    def _judge(self, flying: _Flying) -> None:
        taken = self._gateway if flying.case.by_link else self._requester
        delivered = [seen.text for seen in taken.take(flying.request_id)]
        outcome = next(message for message in flying.said if isinstance(message, Outcome))
        self._server.cases.pop(flying.case.number, None)
        passing = flying.case.end is not None and outcome.end == "retry" and outcome.error and outcome.error["code"] in PASSING
        if passing and not delivered and flying.times < AGAIN:
            self.result.again += 1
            self._send(flying.case, flying.times + 1)
            return
        self.result.ends[outcome.end] += 1
        try:
            check(flying.case, flying.request_id, flying.said, delivered)
        except Wrong as wrong:
            self._wrong(flying.case, str(wrong))

    def _wrong(self, found: Case, what: str) -> None:
        self.result.wrong.append((found.number, what))

    def _look_behind(self) -> None:
        """What nobody asked about any more: deaths, late deliveries, words in the log."""
        for dead in self._backends.dead:
            inside = sorted(flying.case.number for flying in self._flying.values())
            self.result.wrong.append((-1, f"the child died: {dead}; with it {inside}"))
        late = [*self._gateway.ids(), *self._requester.ids()]
        if late:
            self.result.wrong.append((-1, f"delivered after their end: {late}"))
        self.result.overtaken = self._server.overtaken
        log = self._log.read_since()
        if any(word in log for word in BUG_WORDS):
            self.result.wrong.append((-1, "in the log:\n" + log.decode(errors="replace")[-6000:]))


class _Log:
    def __init__(self, path: str) -> None:
        self._path, self._read = path, 0

    def read_since(self) -> bytes:
        with open(self._path, "rb") as file:
            file.seek(self._read)
            found = file.read()
        self._read += len(found)
        return found


@contextlib.contextmanager
def _errors_to_file() -> Iterator[_Log]:
    """What this process and its children write to stderr, whoever writes it."""
    with tempfile.NamedTemporaryFile(suffix=".log") as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield _Log(file.name)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
