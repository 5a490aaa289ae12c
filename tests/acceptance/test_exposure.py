"""What a running node shows to the network: its ports, what it does with whoever knocks there, and who may see its secrets."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gateway.server import primary_address
from tests.fuzz.gateway import FuzzedGateway
from tests.real.embedded_broker import EmbeddedBroker
from tests.real.node import NodeProcess
from tests.real.processes import free_port, wait_until
from tests.real.upstream import Upstream

SECRET = "sk-exposed-0123456789"
SEED = 9


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    status = str(free_port())
    with NodeProcess({"STATE_DIR": str(tmp_path_factory.mktemp("state")), "STATUS_PORT": status}, gateway=True) as running:
        yield running


def bound(node: NodeProcess) -> set[tuple[str, int]]:
    """Every address that any process of the node takes connections or datagrams at."""
    found = [c for process in node.tree() for c in process.net_connections("inet")]
    return {(c.laddr.ip, c.laddr.port) for c in found if c.status == psutil.CONN_LISTEN or (c.type == socket.SOCK_DGRAM and not c.raddr)}


def is_open(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex((host, port)) == 0


def port_of(node: NodeProcess, word: str) -> int:
    """As the log says: `… on http://127.0.0.1:8081, …`."""
    line = next(line for line in node.log().splitlines() if f"{word} on " in line)
    return int(line.split(f"{word} on ", 1)[1].split(",")[0].rsplit(":", 1)[1].split("/")[0])


def test_all_in_one_listens_at_its_documented_ports_on_loopback_alone(node: NodeProcess) -> None:
    """docs/security.md: gateway, status, broker and the broker's admin address."""
    status = int(node.environment["STATUS_PORT"])
    found = bound(node)
    assert {host for host, _ in found} == {"127.0.0.1"}
    ports = {port for _, port in found}
    assert {node.port, status, port_of(node, "broker")} < ports and len(ports) == 4
    assert all(is_open("127.0.0.1", port) for port in ports)
    elsewhere = primary_address()
    if elsewhere != "127.0.0.1":
        assert not [port for port in ports if is_open(elsewhere, port)], "open to the network"


def test_a_node_by_itself_listens_nowhere_and_shows_no_secret(upstream: Upstream, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(SECRET)
    variables = {"NODE_TYPE": "remote", "MODEL_NAME": "exposed", "API_URL": upstream.url, "API_KEY_FILE": str(key)}
    with contextlib.closing(EmbeddedBroker().start()) as broker, NodeProcess({"PULSAR_URL": broker.url, **variables}) as node:
        assert bound(node) == set()
        arguments = [" ".join(process.cmdline()) for process in node.tree()]
        assert not [line for line in arguments if SECRET in line]
        assert SECRET not in node.log()


def test_whoever_sends_nonsense_keeps_nobody_waiting(node: NodeProcess) -> None:
    """`python -m tests.fuzz --gateway` sends as much as is wanted."""
    fuzzed = FuzzedGateway(node, SEED)
    before = fuzzed.rss_bytes
    result = fuzzed.send(range(1500))
    assert result.wrong == [], f"seed {SEED}: {result.wrong[:5]}"
    assert result.sent == 1500 and len(result.waits_s) >= 2
    assert {200, 400, 404} <= result.statuses.keys()
    assert fuzzed.rss_bytes - before < 300 << 20
    wait_until(lambda: fuzzed.connections <= 5, within_s=60, what="connections that are given back")


def test_five_hundred_slow_connections_keep_nobody_waiting(node: NodeProcess) -> None:
    fuzzed = FuzzedGateway(node, SEED)
    result = fuzzed.hold(500, 4.0)
    assert result.wrong == [] and len(result.waits_s) >= 2
    wait_until(lambda: fuzzed.connections <= 5, within_s=60, what="connections that are given back")
