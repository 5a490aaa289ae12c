"""What systemd hears: a real node, and a real socket in systemd's place."""

from __future__ import annotations

import os
import signal
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supervision.node import END_WITHIN_S
from supervision.notify import Notifier
from tests.real.node import NodeProcess

BEAT_S = 0.25  # a quarter of the watchdog's second
# The node, but for one step of its loop, which does not return once the file that is named last is there.
STUCK = """
import os, sys, time
from supervision import node
retire = node.Node._retire
node.Node._retire = lambda self: time.sleep(600) if os.path.exists(sys.argv[1]) else retire(self)
if __name__ == "__main__":
    from supervision.command import run
    run([])
"""


class Systemd:
    """Its end of the protocol: `hear` returns the next message's variables."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def hear(self, within_s: float = 30.0) -> dict[str, str]:
        """Raises TimeoutError."""
        self._socket.settimeout(within_s)
        return dict(line.split("=", 1) for line in self._socket.recv(8192).decode().split("\n"))

    def hear_until(self, is_it: Callable[[dict[str, str]], bool]) -> list[dict[str, str]]:
        heard = [self.hear()]
        while not is_it(heard[-1]):
            heard.append(self.hear())
        return heard

    def hears_nothing(self, for_s: float) -> bool:
        try:
            self.hear(for_s)
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["a file", "an abstract name"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    found = Systemd(str(tmp_path / "notify") if request.param == "a file" else f"@workernode-{uuid.uuid4()}")
    yield found
    found.close()


def node(systemd: Systemd, folder: Path, command: tuple[str, ...] = ("supervisor.py",)) -> NodeProcess:
    asked = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": str(int(4 * BEAT_S * 1e6)), "STATE_DIR": str(folder), "PULSAR_URL": ""}
    return NodeProcess({"BACKEND_PROCESSES": "1", **asked}, command=command)


def is_ready(message: dict[str, str]) -> bool:
    return "READY" in message


def test_a_start_a_life_and_an_end(systemd: Systemd, tmp_path: Path) -> None:
    with node(systemd, tmp_path / "state") as running:
        *starting, ready = systemd.hear_until(is_ready)
        assert starting and all(message["EXTEND_TIMEOUT_USEC"] == "60000000" for message in starting)
        assert ready["STATUS"].startswith("ready; 0 in flight, limit ")
        *_, limit = ready["STATUS"].split()
        early = {f"not subscribed yet; 0 in flight, limit {known}" for known in ("0", limit)}
        assert starting[0]["STATUS"] in early, "its child may be there already"
        beat = systemd.hear()
        assert beat["WATCHDOG"] == "1" and "EXTEND_TIMEOUT_USEC" not in beat
        for process in running.backends():
            assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & process.environ().keys()
        running.signal(signal.SIGTERM)
        *_, stopping = systemd.hear_until(lambda message: "STOPPING" in message)
        assert int(stopping["EXTEND_TIMEOUT_USEC"]) == (8 + END_WITHIN_S) * 1e6
        assert running.wait() == 0


def test_a_stuck_loop_misses_the_watchdog_whatever_its_threads_do(tmp_path: Path) -> None:
    systemd, stuck = Systemd(str(tmp_path / "notify")), tmp_path / "stuck"
    with node(systemd, tmp_path / "state", ("-c", STUCK, str(stuck))) as running:
        systemd.hear_until(is_ready)
        systemd.hear()
        stuck.touch()
        while not systemd.hears_nothing(8 * BEAT_S):  # what was on its way
            pass
        assert len(running.tree()) > 1, "it lives, and does not know"
    systemd.close()


def test_a_stopped_supervisor_misses_it_too_and_goes_on(tmp_path: Path) -> None:
    systemd = Systemd(str(tmp_path / "notify"))
    with node(systemd, tmp_path / "state") as running:
        systemd.hear_until(is_ready)
        running.signal(signal.SIGSTOP)
        while not systemd.hears_nothing(8 * BEAT_S):
            pass
        running.signal(signal.SIGCONT)
        assert systemd.hear()["WATCHDOG"] == "1"
    systemd.close()


def test_a_trouble_stays_in_the_status_once_it_has_passed(systemd: Systemd) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "1", "WATCHDOG_PID": str(os.getpid())})
    for why in ("no backend is ready", "", "the queue\nis away", ""):
        notifier.tell(why, lambda: "3 in flight, limit 4")
    first, ready, trouble, over = (systemd.hear()["STATUS"] for _ in range(4))
    assert (first, ready) == ("no backend is ready; 3 in flight, limit 4", "ready; 3 in flight, limit 4")
    assert trouble == "the queue is away; 3 in flight, limit 4"
    assert over.startswith("ready; 3 in flight, limit 4; last trouble, 2") and over.endswith(": the queue is away")


@pytest.mark.parametrize(
    "environ", [{}, {"NOTIFY_SOCKET": "/nowhere/notify"}, {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "x", "WATCHDOG_PID": "1"}]
)
def test_nobody_who_listens_is_no_trouble(environ: dict[str, str]) -> None:
    notifier = Notifier(environ)
    notifier.tell("", lambda: "0 in flight, limit 1")
    notifier.stopping(1.0)
    assert not environ
