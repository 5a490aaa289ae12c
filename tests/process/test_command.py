"""The command: help, and every way in which a node cannot start. No Pulsar is needed to find these."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

import config
from tests.real.node import NodeProcess
from tests.real.processes import REPOSITORY, wait_until

ABSENT = "pulsar://127.0.0.1:1"
Start = Callable[..., NodeProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """A node that is not waited for; it is ended after the test."""
    started: list[NodeProcess] = []

    def run(variables: dict[str, str], *, gateway: bool = False, command: tuple[str, ...] = ("supervisor.py",)) -> NodeProcess:
        started.append(NodeProcess({"PULSAR_URL": ABSENT, **variables}, gateway=gateway, command=command))
        return started[-1].start(wait=False)

    yield run
    for node in started:
        node.__exit__()


@pytest.mark.parametrize("command", ["supervisor.py", "WorkerNode.py"])
def test_help_names_every_variable(command: str) -> None:
    ran = subprocess.run([sys.executable, command, "--help"], cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    assert ran.returncode == 0
    assert all(f"  {config.variable_name(field)} " in ran.stdout for field in dataclasses.fields(config.Settings))


def test_every_mistake_is_named_at_once(start: Start) -> None:
    wrong = {"NODE_TYPE": "remot", "MODEL_NAME": "meta-llama/Llama-3", "MAX_PROCESS_NUM": "0", "PULSAR_URL": "http://x", "PORT": "http"}
    node = start(wrong)
    assert node.wait() == 78
    log = node.log()
    for name in ("NODE_TYPE", "MODEL_NAME", "MAX_PROCESS_NUM", "PULSAR_URL", "PORT"):
        assert f"configuration: {name} should" in log
    assert "UPSTREAM_MODEL=meta-llama/Llama-3" in log
    assert "Traceback" not in log


def test_a_taken_port_ends_the_node_with_a_hint(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        node = start({"PORT": str(other.getsockname()[1])})
        assert node.wait() == 78
    assert "PORT" in node.log() and "Traceback" not in node.log()


@pytest.mark.parametrize(
    ("kept_bytes", "words"), [(0, "neither a GGUF file nor a llamafile"), (5_000_000, "damaged or incomplete")], ids=["empty", "cut off"]
)
def test_a_model_that_is_no_model_ends_the_node(start: Start, tmp_path: Path, kept_bytes: int, words: str) -> None:
    model = tmp_path / "model.gguf"
    with (REPOSITORY / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf").open("rb") as whole:
        model.write_bytes(whole.read(kept_bytes))
    node = start({"NODE_TYPE": "local", "MODEL_NAME": "m", "MODEL_PATH": str(model)})
    assert node.wait(60) == 78
    assert words in node.log()
    assert "Traceback" not in node.log()


def test_a_missing_model_is_a_mistake_of_the_configuration(start: Start, tmp_path: Path) -> None:
    node = start({"NODE_TYPE": "local", "MODEL_NAME": "m", "MODEL_PATH": str(tmp_path / "absent.gguf")})
    assert node.wait() == 78
    assert "MODEL_PATH should be the path of a file" in node.log()


def test_a_model_command_that_is_not_there_ends_the_node(start: Start) -> None:
    node = start({"NODE_TYPE": "local", "MODEL_NAME": "m", "MODEL_COMMAND": "no-such-server --port {port}"})
    assert node.wait(60) == 78
    assert "no-such-server" in node.log()


def test_children_that_die_while_they_start_are_replaced_with_growing_pauses(start: Start) -> None:
    node = start({"BACKEND_PROCESSES": "1", "DEBUG": "true"})
    for deaths in range(4):
        wait_until(lambda: node.log().count("backend 0 is ready") > deaths, within_s=20, what="a ready backend")  # noqa: B023
        os.kill(int(re.findall(r"backend 0 started as process (\d+)", node.log())[-1]), signal.SIGKILL)
        wait_until(lambda: node.log().count("backend 0 ended: signal SIGKILL") > deaths, within_s=5, what="the notice")  # noqa: B023
    ended, ready = (_times(node.log(), words) for words in ("backend 0 ended", "backend 0 is ready"))
    pauses = [after - before for before, after in zip(ended, ready[1:], strict=False)]
    assert pauses[-1] > 0.9, f"after a third death at least half of 2 s: {pauses}"
    assert node.stop() == 0


def _times(log: str, words: str) -> list[float]:
    """When the lines that hold `words` were written."""
    stamps = [line[:23] for line in log.splitlines() if words in line]
    return [datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S.%f").timestamp() for stamp in stamps]


def test_the_gateway_alone_says_what_is_wrong_with_its_port(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        node = start({"PORT": str(other.getsockname()[1])}, command=("-m", "gateway"))
        assert node.wait() == 78
    assert "PORT" in node.log() and "Traceback" not in node.log()
