"""Scenarios without a load: how soon a node is there, how soon it is there again, and what it costs while it has nothing to do."""

from __future__ import annotations

import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from bench.deaths import answered, body
from bench.stage import Stage, Work, new_model
from bench.stats import Row, Target, spread
from bench.table import Length, Table
from bench.watch import BENCH, NODE, Watch, of_node
from tests.real.node import NodeProcess
from tests.real.processes import free_port, wait_until
from tests.real.requester import Requester
from tests.real.topics import Topics

LOOK_EACH_S = 0.004
WITHIN_S = 60.0
SETTLED_AFTER_S = 5.0
QUIET_FOR_S = 2.0


@dataclass
class Times:
    """In seconds, of each try."""

    floor: list[float] = field(default_factory=list)
    ready: list[float] = field(default_factory=list)
    first_answer: list[float] = field(default_factory=list)
    end: list[float] = field(default_factory=list)
    ready_again: list[float] = field(default_factory=list)
    waiting_answered: list[float] = field(default_factory=list)


def start(stage: Stage, table: Table, length: Length) -> Iterator[Row]:
    """From the command to ready, to the first answer, to the end; and again after SIGKILL. The floor: a process that subscribes."""
    times, seen = Times(), Watch({BENCH: os.getpid()})
    time.sleep(QUIET_FOR_S)
    stage.used_s(seen)  # whether others disturb; later it could not be told from what killed nodes leave
    for _ in range(2 if length.is_quick else 7):
        _one_life(stage, times)
    figures: list[tuple[str, list[float], list[float], Target | None]] = [
        ("start to ready", times.ready, times.floor, Target(at_most=800)),
        ("first answer after ready", times.first_answer, [], Target(at_most=20)),
        ("SIGTERM to the end, nothing in hand", times.end, [], None),
        ("start to ready after SIGKILL", times.ready_again, times.floor, None),
        ("start after SIGKILL to the answer of what waited", times.waiting_answered, [], None),
    ]
    for what, seen_s, floor_s, target in figures:
        found, floor = spread([1000 * s for s in seen_s]), spread([1000 * s for s in floor_s])
        yield table.row(f"{what}, median", "ms", found.p(50), floor.p(50) if floor_s else None, target)
        yield table.row(f"{what}, longest", "ms", found.p(100), floor.p(100) if floor_s else None)


def _one_life(stage: Stage, times: Times) -> None:
    model, port = new_model(), free_port()
    node = stage.node(model, Work(variables={"STATUS_PORT": str(port)}))
    with Requester() as requester, Topics(stage.broker.url, model, f"res-{model}") as topics, ExitStack() as stack:
        topics.open()
        times.floor.append(_seconds_of_floor(stage, model))
        stack.push(node)
        times.ready.append(_seconds_until_ready(node, port))
        times.first_answer.append(_seconds_of(lambda: _ask(requester, topics)))
        times.end.append(_seconds_of(node.stop))
        _seconds_until_ready(node, port)
        node.kill()
        asked = body(requester)
        topics.publish(asked)
        topics.flush()
        started_s = time.monotonic()
        times.ready_again.append(_seconds_until_ready(node, port))
        times.waiting_answered.append(answered(requester, str(asked["request_id"])) - started_s)


def _seconds_of_floor(stage: Stage, model: str) -> float:
    floor = stage.floor(model, Work())
    with ExitStack() as stack:
        stack.push(floor)
        return _seconds_until(floor, lambda: "ready" in floor.log())


def _seconds_until_ready(node: NodeProcess, port: int) -> float:
    return _seconds_until(node, lambda: _is_ready(port))


def _seconds_until(process: NodeProcess, is_ready: Callable[[], bool]) -> float:
    """From its start."""
    started_s = time.monotonic()
    process.start(wait=False)
    wait_until(is_ready, within_s=WITHIN_S, what="ready process", every_s=LOOK_EACH_S)
    return time.monotonic() - started_s


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _ask(requester: Requester, topics: Topics) -> None:
    asked = body(requester)
    topics.publish(asked)
    answered(requester, str(asked["request_id"]))


def _seconds_of(call: Callable[[], object]) -> float:
    started_s = time.monotonic()
    call()
    return time.monotonic() - started_s


def idle(stage: Stage, table: Table, length: Length) -> Iterator[Row]:
    """A demo node with two backend children, one of them the spare, that has nothing to do."""
    with stage.node(new_model(), Work(slots=64, variables={"BACKEND_PROCESSES": "1"})) as node:
        time.sleep(SETTLED_AFTER_S)
        seen, seconds = Watch({NODE: node.pid}), 2 * length.seconds
        time.sleep(seconds)
        used_s, memory = stage.used_s(seen), seen.memory()
    yield table.row("supervisor and 2 children", "% of a core", 100 * of_node(used_s) / seconds, target=Target(at_most=0.3))
    yield table.row("supervisor and 2 children, PSS", "MiB", sum(found.pss for found in memory.values()), target=Target(at_most=90))
    for name, found in memory.items():
        yield table.row(f"{name}, PSS", "MiB", found.pss)
