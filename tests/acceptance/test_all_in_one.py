"""One command: `python supervisor.py` without a PULSAR_URL brings broker, gateway and backends, and keeps them."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pulsar
import pytest
import urllib3

from tests.real.node import NodeProcess
from tests.real.processes import wait_until
from tests.real.upstream import Upstream

HTTP = urllib3.PoolManager(maxsize=32, retries=False, timeout=60)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    with NodeProcess({"STATE_DIR": str(tmp_path)}, gateway=True) as running:
        yield running


def ask(node: NodeProcess, text: str = "hi", **more: object) -> int:
    body = {"model": node.model, "messages": [{"role": "user", "content": text}], **more}
    return HTTP.request("POST", f"{node.base_url}/chat/completions", json=body).status


def client_of(node: NodeProcess) -> pulsar.Client:
    """Of the broker that the node brought."""
    url = next(word for word in node.log().split() if word.startswith("pulsar://")).rstrip(",")
    return pulsar.Client(url, logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))


def part(node: NodeProcess, word: str) -> psutil.Process:
    """The child that listens where the log says that this one does."""
    address = next(line for line in reversed(node.log().splitlines()) if f"{word} on " in line)
    port = int(address.split("on ", 1)[1].split(",")[0].rsplit(":", 1)[1].split("/")[0])
    for process in node.backends():
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in process.net_connections()):
            return process
    raise AssertionError(f"nobody listens on {port}")


def test_it_answers_and_leaves_nothing_behind(node: NodeProcess, tmp_path: Path) -> None:
    assert ask(node) == 200
    models = json.loads(HTTP.request("GET", f"{node.base_url}/models").data)
    assert [model["id"] for model in models["data"]] == ["static"]
    processes = node.tree()
    ports = {c.laddr.port for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
    assert len(ports) == 3, "gateway, broker, and the broker's admin address"
    node.signal(signal.SIGINT)
    assert node.wait() == 0
    assert not psutil.wait_procs(processes, 5)[1]
    assert "Traceback" not in node.log()


@pytest.mark.parametrize("word", ["broker", "gateway"])
def test_a_killed_part_is_replaced_and_answers_go_on(node: NodeProcess, word: str) -> None:
    assert ask(node) == 200
    for _ in range(3):
        victim = part(node, word)
        ready = node.log().count(f"{word} is ready")
        victim.kill()
        wait_until(lambda: node.log().count(f"{word} is ready") > ready, within_s=20, what="its replacement")  # noqa: B023
        wait_until(lambda: _answers(node), within_s=30, what="an answer")
    assert node.stop() == 0


def _answers(node: NodeProcess) -> bool:
    try:
        return ask(node) == 200
    except urllib3.exceptions.HTTPError:  # a gateway that is being replaced
        return False


def test_what_runs_while_the_broker_dies_is_answered_once(upstream: Upstream, tmp_path: Path) -> None:
    variables = {"NODE_TYPE": "remote", "MODEL_NAME": "m", "API_URL": upstream.url, "STATE_DIR": str(tmp_path), "MAX_PROCESS_NUM": "4"}
    with NodeProcess(variables, gateway=True) as node, ThreadPoolExecutor(12) as threads:
        answers = [threads.submit(ask, node, str(n), mock="mock?latency=1s") for n in range(12)]
        upstream.wait_for(lambda stats: stats["in_flight"] == 4)
        part(node, "broker").kill()
        assert [answer.result(60) for answer in answers] == [200] * 12
        assert upstream.stats()["received"] == 12, "nothing was computed twice"


def test_messages_outlive_the_whole_node(tmp_path: Path) -> None:
    """Killed with everything it had started; the next one on the same folder finds what was acknowledged to publishers."""
    with NodeProcess({"STATE_DIR": str(tmp_path), "NODE_TYPE": "demo"}, gateway=True) as node:
        client = client_of(node)
        consumer = client.subscribe("kept", "reader")
        client.create_producer("kept").send(b"survives")
        consumer.close()
        client.close()
        for process in node.tree():
            process.kill()
        node.wait()
    with NodeProcess({"STATE_DIR": str(tmp_path)}, gateway=True) as node:
        client = client_of(node)
        assert client.subscribe("kept", "reader").receive(10_000).data() == b"survives"
        client.close()


@pytest.mark.parametrize("variable", ["KUBERNETES_SERVICE_HOST", "AIMODEL_NAME"])
def test_in_kubernetes_a_queue_must_be_named(variable: str) -> None:
    node = NodeProcess({variable: "x"})
    try:
        node.start(wait=False)
        assert node.wait() == 78
        assert "PULSAR_URL should be set in Kubernetes" in node.log()
    finally:
        node.__exit__()
