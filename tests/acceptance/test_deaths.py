"""Requests that kill whoever works on them, among many that do not; and children that are killed for no fault of theirs."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from typing import Any

from tests.acceptance.test_node import fresh, remote
from tests.real.brokers import Broker
from tests.real.processes import wait_until
from tests.real.requester import Requester
from tests.real.topics import Topics
from tests.real.upstream import Upstream

GOOD, POISONOUS = 400, 8


def request(requester: Requester, behaviour: str, *, stream: bool) -> dict[str, Any]:
    return {
        "request_id": f"{behaviour.partition('?')[0]}-{uuid.uuid4()}", "stream": stream,
        "endpoint": requester.websocket_url if stream else requester.http_url,
        "data": {"model": "m", "mock": behaviour, "messages": [{"role": "user", "content": "hello"}]},
    }  # fmt: skip


def ends(requester: Requester, request_id: str) -> list[dict[str, Any]]:
    """What its requester was told last: `data` of each POST and of each end frame."""
    seen = [*requester.posts(request_id), *(frame for frame in requester.frames(request_id) if frame.json["end"])]
    return [frame.json.get("data") or {} for frame in seen]


def poison_run(pulsar: Broker, upstream: Upstream, good: int, poisonous: int, within_s: float) -> str:
    """Publishes all at once, the poisonous ones spread evenly; checks every promise; what was seen, in words."""
    model = fresh("poison")
    patient = {"BACKEND_PROCESSES": "2", "MAX_PROCESS_NUM": "32", "REQUEST_TTL_S": f"{within_s:g}"}
    with (
        Requester() as requester,
        Topics(pulsar.url, model, f"res-{model}") as topics,
        remote(pulsar, upstream, model, patient, gateway=False) as node,
    ):
        requester.forgets = True
        bodies = [request(requester, "mock?latency=20ms", stream=n % 2 == 0) for n in range(good)]
        for n in range(poisonous):
            bodies.insert(n * good // poisonous, request(requester, "kill", stream=n % 2 == 0))
        started_s = time.monotonic()
        publish(topics, *bodies)
        ids = {str(body["request_id"]) for body in bodies}
        wait_until(lambda: all(ends(requester, name) for name in ids), within_s=within_s, what="an end for each", every_s=0.5)
        took_s = time.monotonic() - started_s
        records = topics.records_of(ids)
        assert Counter(record["record_id"] for record in records).total() >= len({record["record_id"] for record in records}) == len(ids)
        broken = _check_ends(requester, bodies)
        letters = [topics.dead_letter() for _ in range(poisonous)]
        assert {json.loads(payload)["request_id"] for payload, _ in letters} == {name for name in ids if name.startswith("kill")}
        assert all(properties["workernode-deaths"] == properties["workernode-attempt"] == "3" for _, properties in letters)
        assert all("SIGKILL" in properties["workernode-trail"] for _, properties in letters)
        deaths = node.log().count("ended: signal SIGKILL")
        assert deaths <= 3 * poisonous, "no more than three each"
        assert node.stop() == 0
    return f"{good} good, {poisonous} poisonous in {took_s:.0f} s: {deaths} deaths, {broken} good streams cut off by one"


def _check_ends(requester: Requester, bodies: list[dict[str, Any]]) -> int:
    """One end each: a result for a good one, or one error where its stream had begun (a child says so just before the
    first frame); how many of these."""
    broken = 0
    for body in bodies:
        (end,) = ends(requester, body["request_id"])
        if body["request_id"].startswith("kill"):
            assert end["error"]["code"] == "node_child_died"
        elif "error" in end:
            assert body["stream"] and end["error"]["code"] == "node_child_died", "only what had begun"
            broken += 1
    return broken


def test_poisonous_requests_take_nobody_along(pulsar: Broker, upstream: Upstream) -> None:
    assert poison_run(pulsar, upstream, GOOD, POISONOUS, 120)


def test_a_killed_child_is_replaced_at_once_and_the_others_go_on(pulsar: Broker, upstream: Upstream) -> None:
    model = fresh("replaced")
    with (
        Requester() as requester,
        Topics(pulsar.url, model, f"res-{model}") as topics,
        remote(pulsar, upstream, model, {"BACKEND_PROCESSES": "2", "MAX_PROCESS_NUM": "4"}, gateway=False) as node,
    ):
        wait_until(lambda: node.log().count(" is ready after ") == 3, within_s=20, what="two children and a spare")
        slow = [request(requester, "mock?latency=2s", stream=False) for _ in range(4)]
        publish(topics, *slow)
        upstream.wait_for(lambda stats: stats["in_flight"] == 4)
        before = {child.pid for child in node.backends()}
        node.working_on(upstream.url).kill()
        quick = request(requester, "mock", stream=False)
        publish(topics, quick)
        wait_until(lambda: requester.posts(quick["request_id"]), within_s=2, what="an answer by the spare", every_s=0.01)
        wait_until(lambda: all(requester.posts(body["request_id"]) for body in slow), within_s=30, what="all others")
        assert all(len(ends(requester, body["request_id"])) == 1 for body in slow)
        assert "signal SIGKILL (most likely the kernel" in node.log()
        wait_until(lambda: {child.pid for child in node.backends()} - before, within_s=10, what="a new spare")


def publish(topics: Topics, *bodies: dict[str, Any]) -> None:
    """In pieces: the client drops what is over 1,000 unconfirmed."""
    for n in range(0, len(bodies), 500):
        for body in bodies[n : n + 500]:
            topics.publish(body)
        topics.flush()
