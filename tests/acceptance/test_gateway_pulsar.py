"""The gateway with a real Pulsar: a node that the tests play reads the topic and answers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import openai
import pulsar as pulsar_client
import pytest
from websockets.sync.client import connect

from messaging import envelope
from messaging.topics import request_topic, subscription
from tests.real.brokers import Broker
from tests.real.pulsar_server import PulsarServer

DEADLINE_S = 30.0
QUESTION = [{"role": "user", "content": "?"}]


class Gateway:
    """`python -m gateway` on a free port; environ overrides."""

    def __init__(self, **environ: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen([sys.executable, "-m", "gateway"], env=os.environ | {"PORT": str(port)} | environ)
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="k", max_retries=0, timeout=DEADLINE_S)
        self.create: Callable[..., Any] = self.client.chat.completions.create
        until(self.healthy, "the gateway is healthy")

    def healthy(self) -> bool:
        assert self.process.poll() is None, "the gateway ended"
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(15)
        finally:
            self.process.kill()


class Node:
    """A consumer as a node's; answers each request with what `words` says, until it is closed."""

    def __init__(self, url: str, model: str, words: Callable[[envelope.Request], list[str]]) -> None:
        self._client = pulsar_client.Client(url)
        self._consumer = self._client.subscribe(
            request_topic(model), subscription(model), pulsar_client.ConsumerType.Shared,
            initial_position=pulsar_client.InitialPosition.Earliest,
        )
        self._words = words
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._closed.is_set():
            try:
                message = self._consumer.receive(timeout_millis=200)
            except pulsar_client.Timeout:
                continue
            request = envelope.decode(message.data())
            (self._stream if request.stream else self._post)(request, self._words(request))
            self._consumer.acknowledge(message)

    def _post(self, request: envelope.Request, words: list[str]) -> None:
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "".join(words)}}
        data = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        body = json.dumps({"request_id": request.request_id, "data": data}).encode()
        with urllib.request.urlopen(urllib.request.Request(request.endpoint, body), timeout=DEADLINE_S) as response:
            assert response.status == 200

    def _stream(self, request: envelope.Request, words: list[str]) -> None:
        with connect(request.endpoint) as websocket:
            for word in words:
                choice = {"index": 0, "finish_reason": None, "delta": {"content": word}}
                data = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
                websocket.send(json.dumps({"request_id": request.request_id, "end": False, "data": data}))
            websocket.send(json.dumps({"request_id": request.request_id, "end": True}))
            assert websocket.ping().wait(DEADLINE_S)

    def close(self) -> None:
        self._closed.set()
        self._thread.join(DEADLINE_S)
        self._client.close()


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.02)


def echo(request: envelope.Request) -> list[str]:
    return [str(json.loads(bytes(request.data))["messages"][0]["content"]), " via ", request.endpoint.split("/")[2]]


@pytest.fixture(scope="module")
def gateways(pulsar: Broker) -> Iterator[list[Gateway]]:
    """Two of one queue."""
    started = [Gateway(PULSAR_URL=pulsar.url, PULSAR_ADMIN_URL=pulsar.admin_url) for _ in range(2)]
    yield started
    assert [gateway.end() for gateway in started] == [0, 0]


@pytest.fixture
def model(pulsar: Broker) -> Iterator[str]:
    """One that a node serves."""
    name = f"gateway-{uuid4().hex[:8]}"
    node = Node(pulsar.url, name, echo)
    yield name
    node.close()


def test_each_gateway_gets_the_answers_to_its_own_requests(gateways: list[Gateway], model: str) -> None:
    def ask(i: int) -> tuple[str, str]:
        gateway = gateways[i % 2]
        expected = f"q{i} via {gateway.url.removeprefix('http://')}"
        messages = [{"role": "user", "content": f"q{i}"}]
        if i % 3:
            return expected, gateway.create(model=model, messages=messages).choices[0].message.content
        return expected, "".join(part.choices[0].delta.content for part in gateway.create(model=model, messages=messages, stream=True))

    with ThreadPoolExecutor(8) as pool:
        for expected, got in pool.map(ask, range(24)):
            assert got == expected


def test_a_model_that_no_node_ever_served_is_refused(gateways: list[Gateway]) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        gateways[0].create(model=f"none-{uuid4().hex}", messages=QUESTION)
    assert raised.value.code == "model_not_found"


def test_a_model_scaled_to_zero_stays_listed_and_is_answered_when_a_node_is_back(pulsar: Broker, gateways: list[Gateway]) -> None:
    name = f"gateway-{uuid4().hex[:8]}"
    Node(pulsar.url, name, echo).close()
    until(lambda: name in [listed.id for listed in gateways[0].client.models.list()], "the model is listed")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gateways[0].create, model=name, messages=QUESTION)
        node = Node(pulsar.url, name, echo)
        assert waiting.result().choices[0].message.content.startswith("? via ")
        node.close()


def test_a_topic_without_its_nodes_subscription_is_not_listed(pulsar: Broker, gateways: list[Gateway]) -> None:
    name = f"gateway-{uuid4().hex[:8]}"
    client = pulsar_client.Client(pulsar.url)
    client.subscribe(request_topic(name), "somebody-else")
    try:
        listed = [found.id for found in gateways[1].client.models.list()]
        assert name not in listed
        with pytest.raises(openai.NotFoundError):
            gateways[1].create(model=name, messages=QUESTION)
    finally:
        client.close()


def test_a_partitioned_topic_is_one_model(pulsar: Broker, gateways: list[Gateway]) -> None:
    if not isinstance(pulsar, PulsarServer):
        pytest.skip("the embedded broker has no partitioned topics")
    name = f"gateway-{uuid4().hex[:8]}"
    address = f"{pulsar.admin_url}/admin/v2/persistent/public/default/{request_topic(name)}/partitions"
    asked = urllib.request.Request(address, b"2", {"Content-Type": "application/json"}, method="PUT")
    urllib.request.urlopen(asked, timeout=DEADLINE_S).close()
    node = Node(pulsar.url, name, echo)
    try:
        assert gateways[0].create(model=name, messages=QUESTION).choices[0].message.content.startswith("? via ")

        def listed() -> list[str]:
            return [found.id for found in gateways[0].client.models.list() if found.id.startswith(name)]

        until(listed, "the model is listed")
        assert listed() == [name]
    finally:
        node.close()


def test_the_largest_body_passes_and_a_larger_one_is_refused(gateways: list[Gateway], model: str) -> None:
    large = [{"role": "user", "content": "x" * 5_232_000}]
    assert gateways[0].create(model=model, messages=large).choices[0].message.content.startswith("xxx")
    with pytest.raises(openai.APIStatusError) as raised:
        gateways[0].create(model=model, messages=[{"role": "user", "content": "x" * 5_242_880}])
    assert raised.value.status_code == 413


def test_a_queue_that_is_away_is_a_503_in_time() -> None:
    gateway = Gateway(PULSAR_URL="pulsar://127.0.0.1:1")
    try:
        started = time.monotonic()
        with pytest.raises(openai.InternalServerError) as raised:
            gateway.create(model="m", messages=QUESTION)
        assert raised.value.status_code == 503
        assert time.monotonic() - started < 15
        assert gateway.healthy()
    finally:
        assert gateway.end() == 0
