"""The status port of a real node: what it tells while children die and upstreams fail."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import urllib3

from tests.real.node import NodeProcess
from tests.real.processes import REPOSITORY, free_port, wait_until
from tests.real.upstream import Upstream

HTTP = urllib3.PoolManager(maxsize=32, retries=False, timeout=60)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Watched(NodeProcess):
    """All in one, in front of the test upstream, with a status port."""

    def __init__(self, upstream: Upstream, folder: Path, **variables: str) -> None:
        self.status = f"http://127.0.0.1:{free_port()}"
        own = {"STATUS_PORT": self.status.rsplit(":", 1)[1], "STATE_DIR": str(folder), "BACKEND_PROCESSES": "2"}
        remote = {"NODE_TYPE": "remote", "MODEL_NAME": "m", "API_URL": upstream.url, "API_KEY": "sk-geheim-12345678"}
        super().__init__({**own, **remote, **variables}, gateway=True)

    def ask(self, mock: str, **headers: str) -> tuple[int, str]:
        """Status and request id."""
        body = {"model": "m", "mock": mock, "messages": [{"role": "user", "content": "hi"}]}
        response = HTTP.request("POST", f"{self.base_url}/chat/completions", json=body, headers=headers)
        return response.status, response.headers["X-Request-Id"]

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = HTTP.request("GET", f"{self.status}/state").json()
        return found

    def metrics(self) -> dict[str, float]:
        lines = HTTP.request("GET", f"{self.status}/metrics").data.decode().splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}

    def where(self, request_id: str) -> str:
        """What the command prints."""
        command = [sys.executable, "supervisor.py", "where", request_id]
        return subprocess.run(command, env=self.environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture
def node(upstream: Upstream, tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(upstream, tmp_path)
    with watched:
        yield watched


def test_a_killed_child_is_told_and_nothing_is_lost(node: Watched, upstream: Upstream) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(node.ask, "mock?latency=2s") for _ in range(8)]
        upstream.wait_for(lambda stats: stats["in_flight"] == 8)
        held = wait_until(lambda: _with(node.state(), open=8), within_s=20, what="8 in hand")
        victim = next(child for child in held["children"] if child["aboard"])
        assert victim["memory_bytes"] > 1 << 20
        node.working_on(upstream.url).send_signal(signal.SIGKILL)
        assert [answer.result()[0] for answer in answers] == [200] * 8
    state = wait_until(lambda: _with(node.state(), open=0), within_s=20, what="all ended")
    dead = [child for child in state["children"] if child["restarts"]]
    assert len(dead) == 1 and "SIGKILL" in dead[0]["last_death"]["cause"] and dead[0]["last_death"]["aboard"]
    counts = state["snapshot"]
    assert counts["taken"] == counts["ended"] + counts["given_back"]
    assert counts["given_back"] == dead[0]["last_death"]["aboard"]
    assert state["totals"]["outcomes"] == {"answered": 8}
    assert any("ended" in trouble["words"] and "SIGKILL" in trouble["words"] for trouble in state["troubles"])
    assert sum(v for k, v in node.metrics().items() if k.startswith("workernode_child_deaths_total") and 'cause="signal"' in k) == 1
    again = next(i for _, i in (answer.result() for answer in answers) if "put back" in node.where(i))
    assert "SIGKILL" in node.where(again)


def _with(state: dict[str, Any], **figures: int) -> dict[str, Any] | None:
    return state if all(state["snapshot"][name] == figure for name, figure in figures.items()) else None


def test_a_trace_is_carried_to_the_upstream_and_told(node: Watched, upstream: Upstream) -> None:
    status, request_id = node.ask("mock", traceparent=TRACE)
    assert status == 200
    assert upstream.requests()[-1]["headers"]["traceparent"] == TRACE
    assert TRACE in wait_until(lambda: node.where(request_id), within_s=20, what="its timeline")
    node.ask("mock", traceparent="00-nonsense")
    assert "traceparent" not in upstream.requests()[-1]["headers"]
