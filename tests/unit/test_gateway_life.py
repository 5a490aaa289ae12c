"""The gateway as a process: its exit codes, what it says, and where nodes reach it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator

import pytest

import config
from gateway import server
from tests.unit.gateway_fakes import until

NOWHERE = "pulsar://127.0.0.1:1"


def start(**environ: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    return subprocess.Popen(
        [sys.executable, "-m", "gateway"], env=clean | environ, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0(signal_number: int) -> None:
    port = free_port()
    process = start(PULSAR_URL=NOWHERE, PORT=str(port))
    until(lambda: healthy(port) or process.poll() is not None, "healthy")
    process.send_signal(signal_number)
    said = process.communicate(timeout=10)[1]
    assert process.returncode == 0, said
    assert f"gateway on http://127.0.0.1:{port}" in said
    assert "ERROR" not in said


def test_mistakes_are_named_each_on_a_line() -> None:
    process = start(PORT="zero", TIMEOUT="soon")
    said = process.communicate(timeout=10)[1].splitlines()
    assert process.returncode == 78
    assert [line.split(" ", 1)[0] for line in said] == ["PORT", "TIMEOUT", "PULSAR_URL"]


def test_a_taken_port_is_named(taken_port: int) -> None:
    process = start(PULSAR_URL=NOWHERE, PORT=str(taken_port))
    said = process.communicate(timeout=10)[1]
    assert process.returncode == 78
    assert f"PORT should be free to bind: 127.0.0.1:{taken_port}" in said
    assert "Traceback" not in said


def test_help_names_the_variables() -> None:
    process = subprocess.run([sys.executable, "-m", "gateway", "--help"], capture_output=True, text=True, timeout=10, check=True)
    assert "PULSAR_ADMIN_URL" in process.stdout


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_an_address_of_elsewhere_names_host(host: str) -> None:
    with pytest.raises(server.CannotBind, match=r"^HOST "):
        server.bind(host, 0)


def test_serve_says_when_it_is_ready_and_ends_when_told() -> None:
    ready, stop = threading.Event(), threading.Event()
    port = free_port()
    settings = config.load({"PULSAR_URL": NOWHERE, "PORT": str(port)}, gateway_alone=True)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(server.serve(settings, ready.set, stop, own_model="mine")), daemon=True)
    thread.start()
    assert ready.wait(10)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5) as response:
        assert b'"id":"mine"' in response.read()
    stop.set()
    thread.join(10)
    assert codes == [0]
    assert not healthy(port)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "http://127.0.0.1:8081"),
        ({"HOST": "::1", "PORT": "9"}, "http://[::1]:9"),
        ({"ANSWER_URL": "https://gw.example/x/"}, "https://gw.example/x"),
        ({"HOST": "0.0.0.0"}, f"http://{server.address(server.primary_address(), 8081)}"),
    ],
)
def test_where_nodes_reach_it(environ: dict[str, str], expected: str) -> None:
    assert server.answer_url(config.load({"PULSAR_URL": NOWHERE} | environ, gateway_alone=True)) == expected


def test_the_primary_address_is_this_machines() -> None:
    with socket.create_server((server.primary_address(), 0)) as bound:
        assert bound.getsockname()[1]
