"""Messages as other systems publish them, good and bad, straight into the topic: batches, dead letters, lost requesters."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.real.node import NodeProcess
from tests.real.processes import wait_until
from tests.real.pulsar_server import PulsarServer
from tests.real.requester import Requester
from tests.real.topics import Topics


@dataclass
class Scene:
    """A demo node without a gateway, its topics, and a requester's service."""

    node: NodeProcess
    topics: Topics
    requester: Requester
    pulsar: PulsarServer

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
def scene(pulsar: PulsarServer) -> Iterator[Scene]:
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
    """Its finished members are not answered again, its others are."""
    ids = [new_id() for _ in range(40)]
    for request_id in ids:
        scene.topics.publish(scene.request(request_id, stream=True), batch=True)
    scene.topics.flush()
    wait_until(lambda: sum(bool(scene.requester.frames(i)) for i in ids) > 5, within_s=20, what="first answers")
    scene.node.backends()[0].kill()
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
