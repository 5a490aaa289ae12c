"""Messages as other systems publish them, good and bad, straight into the topic: batches, dead letters, lost requesters."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import urllib3

from tests.real.brokers import Broker
from tests.real.node import NodeProcess
from tests.real.processes import wait_until
from tests.real.requester import Requester
from tests.real.topics import Topics


@dataclass
class Scene:
    """A demo node without a gateway, its topics, and a requester's service."""

    node: NodeProcess
    topics: Topics
    requester: Requester
    pulsar: Broker

    def request(self, request_id: str, *, stream: bool = False, **changed: Any) -> dict[str, Any]:
        endpoint = self.requester.websocket_url if stream else self.requester.http_url
        data = {"model": self.node.model, "messages": [{"role": "user", "content": "hi"}]}
        return {"request_id": request_id, "stream": stream, "endpoint": endpoint, "data": data, "metadata": {"headers": {}}, **changed}

    def backlog(self) -> int:
        stats = self.pulsar.admin("GET", f"persistent/public/default/model-{self.node.model}/stats")
        return int(stats["subscriptions"][f"model-{self.node.model}-subscription"]["msgBacklog"])

    def wait_empty(self) -> None:
        wait_until(lambda: self.backlog() == 0, within_s=20, what="empty backlog: everything acknowledged")


@pytest.fixture
def scene(pulsar: Broker) -> Iterator[Scene]:
    model = f"messages-{uuid.uuid4().hex[:8]}"
    limits = {"REQUEST_TTL_S": "8", "MAX_PROCESS_NUM": "6"}
    variables = {"MODEL_NAME": model, "PULSAR_URL": pulsar.url, "RES_TOPIC_NAME": f"res-{model}", **limits}
    with Topics(pulsar.url, model, f"res-{model}") as topics, Requester() as requester, NodeProcess(variables) as node:
        yield Scene(node, topics, requester, pulsar)


def new_id() -> str:
    return str(uuid.uuid4())


def test_batches_are_answered_once_each(scene: Scene) -> None:
    ids = [new_id() for _ in range(100)]
    for number, request_id in enumerate(ids):
        scene.topics.publish(scene.request(request_id, stream=number % 3 == 0), batch=True)
    scene.topics.flush()
    records = scene.topics.records_of(set(ids))
    assert len(records) == 100
    for number, request_id in enumerate(ids):
        if number % 3 == 0:
            ends = [frame for frame in scene.requester.stream(request_id) if frame["end"]]
            assert len(ends) == 1
        else:
            assert len(scene.requester.posts(request_id)) == 1
    scene.wait_empty()


def test_a_batch_survives_the_death_of_a_child_in_its_middle(scene: Scene) -> None:
    """Its finished members are not answered again, its others are. Not while other children boot: on a starved machine many
    a stream would have its end already, and a child that dies before that is confirmed leaves it a second one."""
    scene.node.wait_log("backend 1 is ready")
    time.sleep(0.5)
    ids = [new_id() for _ in range(40)]
    for request_id in ids:
        scene.topics.publish(scene.request(request_id, stream=True), batch=True)
    scene.topics.flush()
    wait_until(lambda: sum(bool(scene.requester.frames(i)) for i in ids) > 5, within_s=20, what="first answers")
    scene.node.working_on(scene.requester.websocket_url).kill()
    scene.topics.records_of(set(ids), within_s=40)
    for request_id in ids:
        ends = [frame for frame in scene.requester.stream(request_id) if frame["end"]]
        assert len(ends) == 1, "one final answer each: a result, or one error where it had begun"
    scene.wait_empty()


@pytest.mark.parametrize(
    "payload", [b"", b"\xff\xfe no JSON", b"[]", b"{}", b'"text"', b'{"request_id": 7}', b"{" * 5000], ids=lambda p: repr(p[:16])
)
def test_an_unreadable_message_becomes_a_dead_letter(scene: Scene, payload: bytes) -> None:
    scene.topics.publish(payload)
    scene.topics.flush()
    found, properties = scene.topics.dead_letter()
    assert found == payload
    assert properties["workernode-last-error"]
    scene.wait_empty()
    good = new_id()
    scene.topics.publish(scene.request(good))
    wait_until(lambda: scene.requester.posts(good), within_s=20, what="an answer to the next request")


@pytest.mark.parametrize(
    ("changed", "what"),
    [({"data": None}, "data"), ({"data": []}, "data"), ({"stream": "yes"}, "stream"), ({"metadata": 7}, "metadata")],
)
def test_the_requester_of_a_half_readable_message_gets_an_error(scene: Scene, changed: dict[str, Any], what: str) -> None:
    request_id = new_id()
    scene.topics.publish(scene.request(request_id) | changed)
    scene.topics.flush()
    (body,) = wait_until(lambda: scene.requester.posts(request_id), within_s=20, what="the error")
    error = body.json["data"]["error"]
    assert error["type"] == "invalid_request_error" and what in error["message"]
    assert json.loads(scene.topics.dead_letter()[0])["request_id"] == request_id


def test_a_requester_that_cannot_be_reached_costs_one_computing_and_leaves_a_dead_letter(scene: Scene) -> None:
    request_id = new_id()
    scene.requester.stop()
    scene.topics.publish(scene.request(request_id))
    scene.topics.flush()
    (record,) = scene.topics.records_of({request_id})
    assert record["outcome"] == "undeliverable" and record["attempt"] == 1
    payload, properties = scene.topics.dead_letter()
    assert json.loads(payload)["request_id"] == request_id
    assert "fixed demo answer" in properties["workernode-answer"]
    scene.wait_empty()


@pytest.mark.whatever_queue
def test_a_hanging_requester_holds_nobody_else_up(scene: Scene) -> None:
    """Each of more hanging deliveries than there are slots ends by its deadline, and others pass by meanwhile."""
    scene.requester.hangs = True
    hanging = [new_id() for _ in range(3)]
    for request_id in hanging:
        scene.topics.publish(scene.request(request_id))
    scene.topics.flush()
    with Requester() as healthy:
        good = [new_id() for _ in range(20)]
        for request_id in good:
            scene.topics.publish(scene.request(request_id, endpoint=healthy.http_url))
        wait_until(lambda: all(healthy.posts(i) for i in good), within_s=15, what="the others' answers")
    assert {record["outcome"] for record in scene.topics.records_of(set(hanging), within_s=60)} == {"undeliverable"}


def test_an_expired_request_is_refused_not_computed(scene: Scene) -> None:
    request_id = new_id()
    scene.node.stop()
    scene.topics.publish(scene.request(request_id))
    scene.topics.flush()
    time.sleep(8.5)  # its time, REQUEST_TTL_S, is what is tested
    scene.node.start()
    (body,) = wait_until(lambda: scene.requester.posts(request_id), within_s=20, what="the refusal")
    assert body.json["data"]["error"]["code"] == "request_expired"
    (record,) = scene.topics.records_of({request_id})
    assert record["outcome"] == "failed" and record["usage"]["total_tokens"] == 0


def test_the_same_request_published_twice_is_answered_once(scene: Scene) -> None:
    request_id, other = new_id(), new_id()
    scene.topics.publish(scene.request(request_id))
    wait_until(lambda: scene.requester.posts(request_id), within_s=20, what="the answer")
    scene.topics.records_of({request_id})
    scene.topics.publish(scene.request(request_id))
    scene.topics.publish(scene.request(other))
    scene.topics.records_of({other})
    scene.wait_empty()
    assert len(scene.requester.posts(request_id)) == 1


def test_a_stopped_child_is_replaced_and_its_requests_are_answered(scene: Scene) -> None:
    """SIGSTOP: the process lives, and says nothing."""
    stopped = scene.node.backends()
    wait_until(lambda: scene.node.log().count("is ready after") >= len(stopped), within_s=60, what="spares too")
    for child in stopped:
        child.suspend()
    ids = [new_id() for _ in range(6)]
    for request_id in ids:
        scene.topics.publish(scene.request(request_id))
    scene.topics.flush()
    scene.node.wait_log("it said nothing for", within_s=40)
    scene.topics.records_of(set(ids), within_s=40)
    assert all(len(scene.requester.posts(request_id)) == 1 for request_id in ids), "a result, or the refusal of what had expired"
    wait_until(lambda: not any(child.is_running() for child in stopped), within_s=10, what="end of the stopped ones")


@pytest.mark.whatever_queue
def test_a_drain_cuts_a_local_models_stream_with_an_error(pulsar: Broker) -> None:
    """Its only child is ended with its model server; the stream that had begun gets its end all the same, and at once."""
    model = f"cut-{uuid.uuid4().hex[:8]}"
    command = f"{shlex.quote(sys.executable)} -m tests.real.upstream --port {{port}}"
    variables = {
        "NODE_TYPE": "local", "MODEL_COMMAND": command, "MODEL_NAME": model, "PULSAR_URL": pulsar.url,
        "RES_TOPIC_NAME": f"res-{model}", "DRAIN_TIMEOUT_S": "1",
    }  # fmt: skip
    with Topics(pulsar.url, model, f"res-{model}") as topics, Requester() as requester, NodeProcess(variables) as node:
        scene, request_id = Scene(node, topics, requester, pulsar), new_id()
        body = {"model": model, "mock": "hang-midstream", "messages": [{"role": "user", "content": "hi"}]}
        topics.publish(scene.request(request_id, stream=True, data=body))
        wait_until(lambda: requester.frames(request_id), within_s=20, what="the first piece")
        node.signal(signal.SIGTERM)
        assert node.wait(10) == 0
        *_, last = requester.stream(request_id)
        assert last["data"]["error"]["code"] == "node_stopped"
        scene.wait_empty()


@pytest.mark.whatever_queue
def test_a_draining_gateway_tells_those_who_wait(pulsar: Broker) -> None:
    variables = {"MODEL_NAME": f"drain-{uuid.uuid4().hex[:8]}", "PULSAR_URL": pulsar.url, "DRAIN_TIMEOUT_S": "2"}
    with NodeProcess(variables, gateway=True) as node, ThreadPoolExecutor(1) as threads:
        body = {"model": f"nobody-{uuid.uuid4().hex[:8]}", "messages": [{"role": "user", "content": "hi"}]}
        waiting = threads.submit(urllib3.request, "POST", f"{node.base_url}/chat/completions", json=body, timeout=30)
        wait_until(lambda: f"model-{body['model']}" in pulsar_topics(pulsar), within_s=20, what="the topic")
        node.signal(signal.SIGTERM)
        assert waiting.result(15).status == 503
        assert node.wait(10) == 0


def pulsar_topics(pulsar: Broker) -> set[str]:
    return {name.rpartition("/")[2] for name in pulsar.admin("GET", "persistent/public/default")}
