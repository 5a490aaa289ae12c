"""The status port of a real node: what it tells while children die and upstreams fail."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.real.processes import wait_until
from tests.real.upstream import Upstream
from tests.real.watched_node import HTTP, WatchedNode

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def node(_shared_upstream: Upstream) -> Iterator[WatchedNode]:
    with WatchedNode(_shared_upstream.url) as watched:
        yield watched


def test_a_killed_child_is_told_and_nothing_is_lost(node: WatchedNode, upstream: Upstream) -> None:
    before = node.state()
    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(node.ask, "mock?latency=2s") for _ in range(8)]
        upstream.wait_for(lambda stats: stats["in_flight"] == 8)
        held = wait_until(lambda: _with(node.state(), open=8), within_s=30, what="8 in hand")
        assert all(child["memory_bytes"] > 1 << 20 for child in held["children"])
        node.working_on(upstream.url).send_signal(signal.SIGKILL)
        assert [answer.result()[0] for answer in answers] == [200] * 8
    state = wait_until(lambda: _with(node.state(), open=0), within_s=20, what="all ended")
    (dead,) = [child for child in state["children"] if child["restarts"]]
    assert "SIGKILL" in dead["last_death"]["cause"]
    now, then = state["snapshot"], before["snapshot"]
    assert now["given_back"] == then["given_back"] and dead["last_death"]["aboard"] > 0, "the first time they stay here"
    assert now["taken"] == now["ended"] + now["given_back"] and now["ended"] - then["ended"] == 8
    assert state["totals"]["outcomes"]["answered"] - before["totals"]["outcomes"].get("answered", 0) == 8
    assert any("ended" in trouble["words"] and "SIGKILL" in trouble["words"] for trouble in state["troubles"])
    assert 'workernode_child_deaths_total{cause="signal"' in node.metrics()
    told = (node.where(request_id) for _, request_id in (answer.result() for answer in answers))
    tried_again = next(each for each in told if "tried again here" in each)
    assert "after attempt 1" in tried_again and "SIGKILL" in tried_again


def _with(state: dict[str, Any], **figures: int) -> dict[str, Any] | None:
    return state if all(state["snapshot"][name] == figure for name, figure in figures.items()) else None


def test_one_request_is_found_in_memory_and_in_the_records(node: WatchedNode, upstream: Upstream) -> None:
    status, request_id = node.ask("mock", traceparent=TRACE)
    assert status == 200
    assert upstream.requests()[-1]["headers"]["traceparent"] == TRACE
    of_node = node.where(request_id)
    assert "Found in this node's memory" in of_node and TRACE in of_node
    of_records = node.where(request_id, STATUS_PORT="")
    assert "Found in its usage record on res-topic" in of_records
    assert [line for line in of_records.splitlines() if "model" in line] == [line for line in of_node.splitlines() if "model" in line]
    unknown = node.where("nobody")
    assert unknown.startswith("No trace of nobody.") and "usage records on res-topic is of it" in unknown


def test_one_that_streams_is_found_in_hand(node: WatchedNode, upstream: Upstream) -> None:
    upstream.everybody("mock?tokens=1000&gap=100ms")
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    headers = {"traceparent": "00-nonsense"}
    stream = HTTP.request("POST", f"{node.base_url}/chat/completions", json=body, headers=headers, preload_content=False)
    told = node.where(stream.headers["X-Request-Id"])
    assert "it is streaming to its requester" in told
    assert "handed to backend " in told and "Found in the node's hands." in told
    assert "traceparent" not in upstream.requests()[-1]["headers"]
    stream.close()
    upstream.wait_for(lambda stats: stats["cancelled"] == 1)
