"""The node's loop itself, on a queue that is not there: what it does when one of its own steps fails."""

from __future__ import annotations

import contextlib
import signal

import psutil
import pytest

import config
from errors import ExitCode
from messaging.line import properties_of
from supervision.boot import boot
from supervision.children import Crew
from supervision.node import Node
from tests.real.node import NodeProcess
from tests.real.processes import free_port, wait_until


def settings(**variables: str) -> config.Settings:
    return config.load({"PULSAR_URL": "pulsar://127.0.0.1:1", "BACKEND_PROCESSES": "1", **variables})


def test_a_bug_in_the_loop_ends_the_node_and_all_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(boot(settings(PORT=str(free_port()))))
    before = set(psutil.Process().children(recursive=True))

    def fails_once_all_are_ready() -> None:
        children = node._crew.children()
        if children and all(child.ready for child in children):
            raise ValueError("a bug")

    monkeypatch.setattr(node, "_receive", fails_once_all_are_ready)
    assert node.run() == ExitCode.CRASHED
    started = [p for p in psutil.Process().children(recursive=True) if p not in before and "spawn_main" in " ".join(p.cmdline())]
    assert not psutil.wait_procs(started, 5)[1]


class _Odd:
    def properties(self) -> dict[str, str]:
        return {"name": b"\xff".decode()}


def test_properties_that_are_no_text_count_as_none() -> None:
    assert properties_of(_Odd()) == {}


def test_a_place_whose_process_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def none_to_be_had(crew: Crew, role: object) -> None:
        tries.append(role)
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(Crew, "_spawn", none_to_be_had)
    monkeypatch.setattr("supervision.boot.FIRST_ALONE_S", 0.0)
    node = Node(boot(settings()))
    for _ in range(5):
        node._crew.start_missing()
    assert len(tries) == 2 * 2, "of each place: the first pause is none, the later ones grow"
    assert node._crew.next_start_s() is not None


def test_a_signal_before_the_loop_runs_ends_the_node_as_any() -> None:
    """Its first child is there before it listens."""
    node = NodeProcess({"NODE_TYPE": "demo", "MODEL_NAME": "m", "PULSAR_URL": "pulsar://127.0.0.1:1", "PORT": str(free_port())})
    with contextlib.ExitStack() as stack:
        stack.push(node)
        node.start(wait=False)
        children = wait_until(node.backends, within_s=10, what="first child", every_s=0.001)
        psutil.Process(node.pid).send_signal(signal.SIGINT)
        assert node.process is not None and node.process.wait(20) == 0, node.log()
        assert not psutil.wait_procs(children, 5)[1]
