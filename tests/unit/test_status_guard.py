"""Who may kill a child, and who may read at all: other sites' pages, names that lead here by DNS rebinding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import urllib3

import config
from status.guard import is_loopback, may_kill
from status.status import Status
from tests.real.processes import free_port, wait_until
from tests.unit.status_fakes import StillNode

HTTP = urllib3.PoolManager(retries=False, timeout=10)
Asked = Callable[..., int]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST", "::1", "[::1]"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "10.0.0.1", "example.com", "localhost.example.com", "127.0.0.1.example.com"])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_who_has_kill_buttons() -> None:
    remote = {"NODE_TYPE": "remote", "MODEL_NAME": "m", "API_URL": "http://h", "PULSAR_URL": "pulsar://h"}
    assert may_kill(config.load({}))
    assert not may_kill(config.load({"STATUS_HOST": "0.0.0.0"}))
    assert not may_kill(config.load(remote))
    assert may_kill(config.load({**remote, "ALLOW_KILL": "true"}))


def test_killing_where_others_can_reach_the_port_is_a_mistake() -> None:
    with pytest.raises(config.ConfigurationMistakes, match=r"ALLOW_KILL.*STATUS_HOST.*127\.0\.0\.1"):
        config.load({"ALLOW_KILL": "true", "STATUS_HOST": "0.0.0.0"})


class Served:
    """A demo's status port, its loop turned by `ask`."""

    def __init__(self) -> None:
        self.port, self.node = free_port(), StillNode()
        self.status = Status(config.load({"STATUS_PORT": str(self.port)}), self._turn)

    def _turn(self) -> None:
        self.status.tell("", self.node)

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None) -> int:
        return HTTP.request(method, f"http://127.0.0.1:{self.port}{path}", headers=headers).status

    def token(self) -> str:
        page = HTTP.request("GET", f"http://127.0.0.1:{self.port}/").data.decode()
        return page.split('name="token" content="')[1].split('"')[0]


@pytest.fixture
def served() -> Served:
    return Served()


def test_the_page_kills(served: Served) -> None:
    own = {"X-WorkerNode-Token": served.token(), "Origin": f"http://127.0.0.1:{served.port}", "Sec-Fetch-Site": "same-origin"}
    assert served.ask("POST", "/children/1/kill", own) == 200
    assert served.ask("POST", "/children/9/kill", own) == 404
    assert served.node.killed == [1, 9]


@pytest.mark.parametrize(
    "headers",
    [
        {"X-WorkerNode-Token": ""},
        {"X-WorkerNode-Token": "guessed"},
        {"Origin": "http://example.com"},
        {"Origin": "null"},
        {"Origin": "http://[broken"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "example.com"},
        {"Host": "example.com:80", "Origin": "http://example.com:80"},
    ],
)
def test_others_do_not(served: Served, headers: dict[str, str]) -> None:
    assert served.ask("POST", "/children/1/kill", {"X-WorkerNode-Token": served.token(), **headers}) == 403
    assert served.node.killed == []


def test_another_name_that_leads_here_reads_nothing(served: Served) -> None:
    for path in ("/", "/events", "/where/r", "/metrics"):
        assert served.ask("GET", path, {"Host": f"rebound.example.com:{served.port}"}) == 403
    assert served.ask("GET", "/where/r", {"Host": f"localhost:{served.port + 1}"}) == 404, "as through a tunnel"


def test_watchers_and_connections_are_bounded(served: Served) -> None:
    open_feeds = [
        HTTP.request("GET", f"http://127.0.0.1:{served.port}/events", preload_content=False) for _ in range(16)
    ]
    assert served.ask("GET", "/events") == 503
    assert served.ask("GET", "/livez") == 200
    for feed in open_feeds:
        feed.close()
    wait_until(lambda: _has_a_seat(served), within_s=20, what="a free seat")


def _has_a_seat(served: Served) -> bool:
    response = HTTP.request("GET", f"http://127.0.0.1:{served.port}/events", preload_content=False)
    response.close()
    return response.status == 200
