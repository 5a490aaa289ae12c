"""When waiting is hopeless: by requests that were seen to wait and to begin, at a clock of the test's own."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import cast

import pytest

from gateway import pending as pending_module
from gateway.patience import Line
from gateway.pending import Link, Pending, Waiter


@dataclasses.dataclass
class Nodes:
    """Take the first in line, so many a second."""

    a_second: float
    line: Line = dataclasses.field(default_factory=Line)
    waiting: list[str] = dataclasses.field(default_factory=list)
    now_s: float = 1000.0
    owed: float = 0.0
    count: int = 0

    def arrive(self, number: int = 1) -> None:
        for _ in range(number):
            self.count += 1
            self.waiting.append(f"r{self.count}")
            self.line.enter(self.waiting[-1], self.now_s)

    def run(self, seconds: int, arrivals: int = 0) -> None:
        for _ in range(seconds):
            self.now_s += 1
            self.arrive(arrivals)
            self.owed = min(self.owed + self.a_second, len(self.waiting))
            while self.owed >= 1 and self.waiting:
                self.owed -= 1
                self.begin(self.waiting.pop(0))

    def begin(self, request_id: str) -> None:
        self.line.begin(request_id)
        self.line.leave(request_id, True)

    def wait_s(self) -> float | None:
        return self.line.wait_s(self.now_s)


def test_a_long_line_takes_as_long_as_it_was_seen_to_move() -> None:
    nodes = Nodes(a_second=2)
    nodes.arrive(1000)
    nodes.run(1)
    assert nodes.wait_s() is None  # too early to tell
    nodes.run(20)
    wait_s = nodes.wait_s()
    assert wait_s is not None and 400 < wait_s < 520  # about 960 at 2 a second


def test_an_idle_node_is_not_judged_by_how_little_it_was_asked() -> None:
    nodes = Nodes(a_second=100)
    nodes.run(60, arrivals=1)
    nodes.arrive(90)
    assert nodes.wait_s() is None
    nodes.run(1)
    assert nodes.wait_s() is None and not nodes.waiting


def test_who_begins_nothing_is_waited_for() -> None:
    """A model that is scaled to zero takes a minute to be there."""
    nodes = Nodes(a_second=0)
    nodes.run(120, arrivals=10)
    assert nodes.wait_s() is None


def test_a_few_that_are_tried_again_and_again_say_nothing() -> None:
    nodes = Nodes(a_second=50)
    for number in range(9):
        nodes.line.enter(f"stuck{number}", nodes.now_s)
    nodes.run(100, arrivals=1)
    nodes.arrive(500)
    assert nodes.wait_s() is None
    nodes.run(6)
    wait_s = nodes.wait_s()
    assert wait_s is not None and wait_s < 10


def test_nodes_that_say_nothing_of_beginning_are_not_judged() -> None:
    nodes = Nodes(a_second=1)
    nodes.line.enter("plain", nodes.now_s)
    nodes.line.leave("plain", True)  # answered, and never begun
    nodes.arrive(1000)
    nodes.run(60)
    assert nodes.wait_s() is None


def test_who_leaves_is_in_line_no_more() -> None:
    line = Line()
    line.enter("a", 0.0)
    line.enter("b", 0.0)
    assert line.leave("a", False) == 1 and line.leave("a", False) == 1
    line.begin("b")
    assert line.leave("b", True) == 0


def test_requests_at_a_gateway_are_in_line_until_a_link_begins_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s = [0.0]
    monkeypatch.setattr(pending_module, "time", SimpleNamespace(monotonic=lambda: clock_s[0]))
    pending, link = Pending(), cast(Link, SimpleNamespace(cancel=lambda _: None))
    waiters = [Waiter(f"r{number}", False, lambda: None, model="m") for number in range(40)]
    for waiter in waiters:
        pending.add(waiter)
    clock_s[0] = 10.0
    for waiter in waiters[:20]:
        assert pending.begin(waiter.request_id, 1, link) == "go"
    assert pending.wait_s("m") == 10.0 and pending.wait_s("other") is None
    for waiter in waiters:
        pending.remove(waiter)
    assert pending.wait_s("m") is None
