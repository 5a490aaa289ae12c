"""What really crosses the wire, held against docs/asyncapi.yaml and docs/openapi.yaml: a real node, gateway and queue."""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pulsar
import pytest
import urllib3
from websockets.sync.client import connect

from messaging.topics import request_topic
from tests.real.embedded_broker import EmbeddedBroker
from tests.real.link_gateway import LinkGateway
from tests.real.node import NodeProcess
from tests.real.processes import wait_until
from tests.real.requester import Requester
from tests.real.specification import OPENAPI, check, response_schema
from tests.real.topics import Topics

HTTP = urllib3.PoolManager(retries=False, timeout=60)
MODEL = "specified"


@dataclass
class Scene:
    """A demo node with a gateway on a broker, and what it publishes and is asked."""

    node: NodeProcess
    topics: Topics
    client: pulsar.Client
    seen: pulsar.Consumer  # a subscription of its own beside the node's

    def published(self) -> pulsar.Message:
        message = self.seen.receive(20_000)
        self.seen.acknowledge(message)
        return message

    def call(self, method: str, path: str, body: Any = None, described_as: str = "") -> urllib3.BaseHTTPResponse:
        """Its answer is checked by what the document says of this path and status."""
        answer = HTTP.request(method, f"http://127.0.0.1:{self.node.port}{path}", json=body)
        if answer.headers["content-type"] == "application/json":
            check(response_schema(described_as or path, method.lower(), answer.status), answer.data, OPENAPI)
        return answer


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with contextlib.closing(EmbeddedBroker().start()) as broker:
        variables = {"PULSAR_URL": broker.url, "PULSAR_ADMIN_URL": broker.admin_url, "MODEL_NAME": MODEL, "RES_TOPIC_NAME": "res-specified"}
        client = pulsar.Client(broker.url, logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
        seen = client.subscribe(request_topic(MODEL), "seen", initial_position=pulsar.InitialPosition.Earliest)
        with Topics(broker.url, MODEL, "res-specified") as topics, NodeProcess(variables, gateway=True) as node:
            yield Scene(node, topics, client, seen)
        client.close()


def chat(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **more}


def test_what_a_gateway_asks_and_is_answered(scene: Scene) -> None:
    for path in ("/v1/chat/completions", "/api/v1/chat/completions"):
        body = chat()
        check("Chat", body, OPENAPI)
        answer = scene.call("POST", path, body)
        assert answer.status == 200
        message = scene.published()
        check("Request", message.data())
        assert json.loads(message.data())["request_id"] == answer.headers["x-request-id"]
        assert uuid.UUID(answer.headers["x-request-id"])


def test_a_stream_is_of_chunks(scene: Scene) -> None:
    answer = scene.call("POST", "/v1/chat/completions", chat(stream=True, stream_options={"include_usage": True}))
    events = [event.removeprefix("data: ") for event in answer.data.decode().split("\n\n") if event]
    assert events.pop() == "[DONE]" and len(events) > 2
    for event in events:
        check("Chunk", event, OPENAPI)
    check("Request", scene.published().data())


def test_refusals_and_the_other_paths(scene: Scene) -> None:
    statuses = [
        scene.call("POST", "/v1/chat/completions", {"model": MODEL}).status,
        scene.call("POST", "/v1/chat/completions", chat(model="nobody-ever-served")).status,
        scene.call("POST", "/res", {"request_id": "nobody", "data": {"choices": []}}).status,
        scene.call("POST", "/res", []).status,
        scene.call("GET", "/v1/models").status,
        scene.call("GET", f"/v1/models/{MODEL}", described_as="/v1/models/{model}").status,
        scene.call("GET", "/v1/models/none", described_as="/v1/models/{model}").status,
        scene.call("GET", "/health").status,
    ]
    assert statuses == [400, 404, 404, 400, 200, 200, 404, 200]


def test_answers_to_an_endpoint(scene: Scene) -> None:
    with Requester() as requester:
        ids = {stream: str(uuid.uuid4()) for stream in (False, True)}
        for stream, request_id in ids.items():
            endpoint = requester.websocket_url if stream else requester.http_url
            request = {"request_id": request_id, "stream": stream, "endpoint": endpoint, "data": chat()}
            check("Request", request)
            scene.topics.publish(request)
        scene.topics.flush()
        scene.topics.records_of(set(ids.values()))  # each is checked by its schema
        (posted,) = requester.posts(ids[False])
        check("Answer", posted.text, OPENAPI)
        *pieces, end = requester.frames(ids[True])
        for piece in pieces:
            check("Piece", piece.text)
        check("End", end.text)
    for _ in ids:
        check("Request", scene.published().data())


def test_frames_on_a_link(scene: Scene) -> None:
    with LinkGateway() as gateway:
        for stream in (False, True):
            request_id = str(uuid.uuid4())
            offer = {"workernode": {"link": gateway.url, "v": 1}}
            request = {"request_id": request_id, "stream": stream, "endpoint": "http://127.0.0.1:9/res", "data": chat(), "metadata": offer}
            check("Request", request)
            scene.topics.publish(request)
            scene.topics.records_of({request_id})
            begun = gateway.begun(request_id)[0]
            check("Begin", {"type": "begin", "request_id": begun.request_id, "attempt": begun.attempt})
            *pieces, end = gateway.seen(request_id)
            assert bool(pieces) is stream
            for piece in pieces:
                check("Piece", piece.text)
            check("End", end.text)
            scene.published()


def test_what_a_gateway_says_on_a_link(scene: Scene) -> None:
    """The real gateway's words to a link that the test holds, for a request that nobody else begins."""
    model = "specified-elsewhere"  # no node of which runs
    reader = scene.client.subscribe(request_topic(model), f"model-{model}-subscription", initial_position=pulsar.InitialPosition.Earliest)
    url = f"{scene.node.base_url}/chat/completions"
    with connect(f"ws://127.0.0.1:{scene.node.port}/res/link") as link:
        threading.Thread(target=lambda: HTTP.request("POST", url, json=chat(model=model)), daemon=True).start()
        request = json.loads(reader.receive(20_000).data())
        check("Request", request)

        def say(**frame: Any) -> dict[str, Any]:
            link.send(json.dumps({"request_id": request["request_id"], **frame}))
            heard: dict[str, Any] = json.loads(link.recv(20))
            return heard

        for attempt, expected in ((1, "go"), (2, "go")):
            heard = say(type="begin", attempt=attempt)
            check("Reply", heard)
            assert heard["type"] == expected
        for expected in ("taken", "gone"):
            heard = say(end=True, data={"choices": []})
            check("Receipt", heard)
            assert heard["type"] == expected
    reader.close()


def test_dead_letters_and_their_properties(scene: Scene) -> None:
    with Requester() as requester:
        requester.post_status = 413
        request_id = str(uuid.uuid4())
        scene.topics.publish({"request_id": request_id, "stream": False, "endpoint": requester.http_url, "data": chat()})
        payload, properties = scene.topics.dead_letter()
        wait_until(lambda: requester.post_tries == 1, within_s=5, what="its POST")
    check("Request", payload)
    check("Properties", properties)
    assert {"workernode-attempt", "workernode-published-ms", "workernode-answer"} <= properties.keys()
    check("Completion", properties["workernode-answer"], OPENAPI)
