"""Real backend children under the supervisor's own Crew, and tasks for them: all of a node but its queue."""

from __future__ import annotations

import functools
import itertools
import random
import selectors
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

import backends.child
import config
from config import Settings
from ipc.messages import FromChild, Outcome, Ready, Refuse, Task
from supervision.children import Child, Crew, Dead, Role
from tests.real.requester import Requester

Found = TypeVar("Found")
_numbers = itertools.count(1)
NO_ENDPOINT = "http://127.0.0.1:9/res"
HELLO = [{"role": "user", "content": "hello there"}]


def settings(api_url: str = "http://127.0.0.1:9", **variables: str) -> Settings:
    """As the environment would give them, with a short patience."""
    given = {"NODE_TYPE": "remote", "MODEL_NAME": "gpt-test", "API_URL": api_url, "PULSAR_URL": "pulsar://127.0.0.1:1",
             "FIRST_TOKEN_TIMEOUT_S": "5", "READ_TIMEOUT_S": "5"}  # fmt: skip
    return config.load(given | variables)


class Backends:
    """`with Backends(settings) as backends:`: its children are ready, and all that they say is kept with its time."""

    def __init__(self, given: Settings, *, count: int = 1, room: int = 16, lease_s: float = 10.0, wait: bool = True) -> None:
        main = functools.partial(backends.child.main, lease_s=lease_s)
        self.selector = selectors.DefaultSelector()
        roles = [Role(f"backend {n}", main, (given, n, room), room) for n in range(count)]
        self.crew = Crew(roles, self.selector, random.Random(1))
        self.said: list[tuple[Child, FromChild, float]] = []
        self.dead: list[Dead] = []
        self._wait = wait

    def __enter__(self) -> Backends:
        self.crew.start_missing()
        if self._wait:
            try:
                count = len(self.crew.children())
                self.until(lambda: sum(isinstance(m, Ready) for _, m, _ in self.said) == count, 20, "ready children")
            except BaseException:
                self.crew.kill_all()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self.crew.kill_all()

    @property
    def child(self) -> Child:
        return self.crew.children()[0]

    def turn(self, timeout_s: float = 0.02) -> None:
        """One turn of the node's loop: wait, collect, bury."""
        self.crew.flush()
        self.crew.appoint()
        self.selector.select(timeout_s)
        collected = [(child, message, time.monotonic()) for child, message in self.crew.collect()]
        self.said += collected
        for dead in self.crew.bury():
            self.dead.append(dead)
            self.said += [(dead.child, message, time.monotonic()) for message in dead.unread]

    def until(self, check: Callable[[], Found | None], within_s: float, what: str) -> Found:
        """Turn until `check` returns something true."""
        give_up_at_s = time.monotonic() + within_s
        while not (found := check()):
            assert time.monotonic() < give_up_at_s, f"no {what} within {within_s:g} s; said: {[m for _, m, _ in self.said[-5:]]}"
            self.turn()
        return found

    def messages(self, number: int) -> list[tuple[FromChild, float]]:
        """What was said of one task, with the times."""
        return [(m, at_s) for _, m, at_s in self.said if getattr(m, "number", None) == number]

    def outcome(self, number: int, within_s: float = 10.0) -> Outcome:
        """Its one outcome, once it came."""
        self.until(lambda: any(isinstance(m, Outcome) for m, _ in self.messages(number)), within_s, f"outcome of task {number}")
        outcomes = [m for m, _ in self.messages(number) if isinstance(m, Outcome)]
        assert len(outcomes) == 1
        return outcomes[0]

    def send(self, task: Task | Refuse, child: Child | None = None) -> int:
        self.crew.send(child or self.child, task)
        self.crew.flush()
        return task.number

    def run(self, task: Task | Refuse, within_s: float = 10.0) -> Outcome:
        return self.outcome(self.send(task), within_s)


def task(
    requester: Requester | str, behaviour: str = "mock", *, stream: bool, ttl_s: float = 60.0, attempt: int = 1, **more: Any
) -> Task:
    """A task that the test upstream answers with `behaviour`; requester: or the address of a link; `more`: fields of the
    body."""
    number, now_s = next(_numbers), time.monotonic()
    data = msgspec.json.encode({"model": "asked-for", "mock": behaviour, "messages": HELLO} | more)
    endpoint, link = _addresses(requester, stream)
    return Task(number, f"request-{number}", stream, endpoint, data, now_s, now_s + ttl_s, attempt, link)


def _addresses(requester: Requester | str, stream: bool) -> tuple[str, str]:
    if isinstance(requester, str):
        return NO_ENDPOINT, requester
    return requester.websocket_url if stream else requester.http_url, ""


def refuse(requester: Requester | str, error: dict[str, Any], *, stream: bool, ttl_s: float = 60.0) -> Refuse:
    asked = task(requester, stream=stream, ttl_s=ttl_s)
    return Refuse(
        asked.number, asked.request_id, stream, asked.endpoint, error, asked.received_at_s, asked.deadline_at_s, 1, asked.link
    )
