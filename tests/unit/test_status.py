"""Whether the loop turns, whether the node takes requests, and the port that says so."""

from __future__ import annotations

import urllib3

import config
from status import health as module
from status.facts import Snapshot
from status.health import Health
from status.status import Status
from tests.real.processes import free_port
from tests.unit.status_fakes import StillNode

HTTP = urllib3.PoolManager(retries=False, timeout=10)


def test_readiness_and_life_over_http() -> None:
    port = free_port()
    status = Status(config.load({"STATUS_PORT": str(port)}), lambda: None)

    def get(path: str) -> tuple[int, str]:
        response = HTTP.request("GET", f"http://127.0.0.1:{port}{path}")
        return response.status, response.json().get("why", "")

    assert get("/livez") == (200, "")
    assert get("/readyz") == (503, "starting")
    status.tell("no backend is ready", StillNode())
    assert get("/readyz") == (503, "no backend is ready")
    status.tell("", StillNode())
    assert get("/readyz?verbose") == (200, "")
    assert get("/elsewhere")[0] == 404


def test_a_loop_that_stands_still_is_neither_ready_nor_alive() -> None:
    health = Health()
    health.tell("")
    assert health.look("/readyz")[0] == health.look("/livez")[0] == 200
    health._told_s -= module.STANDS_STILL_AFTER_S + 1
    assert health.look("/readyz")[0] == health.look("/livez")[0] == 503
    assert "stood still" in health.look("/livez")[1]["why"]


def test_a_port_that_is_taken_is_said() -> None:
    port = free_port()
    Status(config.load({"STATUS_PORT": str(port)}), lambda: None)
    Status(config.load({"STATUS_PORT": str(port)}), lambda: None)  # logged; the node works without


def test_an_address_of_the_other_kind() -> None:
    port = free_port()
    Status(config.load({"STATUS_PORT": str(port), "STATUS_HOST": "::1"}), lambda: None)
    assert HTTP.request("GET", f"http://[::1]:{port}/livez").status == 200


def test_without_a_port_nothing_is_kept() -> None:
    status = Status(config.load({}), lambda: None)
    status.tell("", StillNode())
    assert status._book is None


def test_a_bug_in_what_only_looks_on_is_harmless() -> None:
    class Broken(StillNode):
        def snapshot(self, why_not_ready: str) -> Snapshot:
            raise RuntimeError("a bug")

    port = free_port()
    status = Status(config.load({"STATUS_PORT": str(port)}), lambda: None)
    status.tell("", Broken())
    status.tell("", Broken())
    assert HTTP.request("GET", f"http://127.0.0.1:{port}/readyz").status == 200
