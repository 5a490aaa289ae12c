"""What the node says of itself over HTTP."""

from __future__ import annotations

import urllib3

import config
from supervision import status as module
from supervision.status import Status
from tests.real.processes import free_port


def test_readiness_and_life_over_http() -> None:
    port = free_port()
    status = Status(config.load({"STATUS_PORT": str(port)}))
    http = urllib3.PoolManager(retries=False, timeout=5)

    def get(path: str) -> tuple[int, str]:
        response = http.request("GET", f"http://127.0.0.1:{port}{path}")
        return response.status, response.json().get("why", "")

    assert get("/livez") == (200, "")
    assert get("/readyz") == (503, "starting")
    status.tell("no backend is ready")
    assert get("/readyz") == (503, "no backend is ready")
    status.tell("")
    assert get("/readyz?verbose") == (200, "")
    assert get("/elsewhere")[0] == 404


def test_a_loop_that_stands_still_is_neither_ready_nor_alive() -> None:
    status = Status(config.load({}))
    status.tell("")
    assert status.look("/readyz")[0] == status.look("/livez")[0] == 200
    status._told_s -= module.STANDS_STILL_AFTER_S + 1
    assert status.look("/readyz")[0] == status.look("/livez")[0] == 503
    assert "stood still" in status.look("/livez")[1]["why"]


def test_a_port_that_is_taken_is_said() -> None:
    port = free_port()
    Status(config.load({"STATUS_PORT": str(port)}))
    Status(config.load({"STATUS_PORT": str(port)}))  # logged; the node works without
