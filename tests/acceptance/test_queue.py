"""The node and its queue: tokens, wrong addresses, a restart in the middle, many requests."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import urllib3

from tests.real.brokers import Broker
from tests.real.node import NodeProcess
from tests.real.processes import REPOSITORY, wait_until
from tests.real.topics import Topics

HTTP = urllib3.PoolManager(maxsize=64, retries=False, timeout=60)


def demo(url: str, model: str, *, gateway: bool = True, **variables: str) -> NodeProcess:
    return NodeProcess({"MODEL_NAME": model, "PULSAR_URL": url, "RES_TOPIC_NAME": f"res-{model}", **variables}, gateway=gateway)


def fresh(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


def ask(node: NodeProcess, text: str = "hi", *, stream: bool = False) -> tuple[int, Any, str]:
    """Status, body and request id of one chat completion; of a stream its text."""
    body = {"model": node.model, "stream": stream, "messages": [{"role": "user", "content": text}]}
    answer = HTTP.request("POST", f"{node.base_url}/chat/completions", json=body)
    found = answer.data.decode() if stream and answer.status == 200 else answer.json()
    return answer.status, found, answer.headers["x-request-id"]


def backlog(pulsar: Broker, model: str) -> int:
    stats = pulsar.admin("GET", f"persistent/public/default/model-{model}/stats")
    return int(stats["subscriptions"][f"model-{model}-subscription"]["msgBacklog"])


def test_ten_thousand_requests_are_answered_exactly_once_in_flat_memory(pulsar: Broker) -> None:
    model, ids = fresh("many"), set()
    with Topics(pulsar.url, model, f"res-{model}") as topics, demo(pulsar.url, model) as node, ThreadPoolExecutor(64) as threads:

        def run(count: int) -> int:
            for status, body, request_id in threads.map(lambda n: ask(node, str(n)), range(count)):
                assert status == 200 and body["choices"][0]["message"]["content"]
                ids.add(request_id)
            return sum(process.memory_info().rss for process in node.tree())

        early_bytes = run(2000)
        late_bytes = run(8000)
        records = topics.records_of(ids)
        assert len(records) == len(ids) == 10_000, "one record each"
        assert {record["outcome"] for record in records} == {"answered"}
        assert late_bytes < early_bytes * 1.1, f"memory grew from {early_bytes:,} to {late_bytes:,} bytes"
        wait_until(lambda: backlog(pulsar, model) == 0, within_s=15, what="empty backlog")


def test_streams_at_64_at_once_are_whole(pulsar: Broker) -> None:
    with demo(pulsar.url, fresh("streams")) as node, ThreadPoolExecutor(64) as threads:
        texts = list(threads.map(lambda n: ask(node, str(n), stream=True)[1], range(256)))
    for text in texts:
        *chunks, done = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
        words = "".join(json.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert done == "[DONE]" and words.startswith("This is WorkerNode's") and words.endswith("came back.")


def test_pulsar_restarts_in_the_middle(own_pulsar: Broker) -> None:
    model = fresh("restart")
    with demo(own_pulsar.url, model) as node, ThreadPoolExecutor(8) as threads:
        assert ask(node)[0] == 200
        own_pulsar.kill()
        node.wait_log("is not to be reached", within_s=40)
        waiting = [threads.submit(ask, node, f"during {n}") for n in range(8)]
        own_pulsar.start()
        during = [answer.result(90)[0] for answer in waiting]
        assert set(during) <= {200, 503}, "what could not be published is refused, nothing hangs"
        wait_until(lambda: ask(node, "after")[0] == 200, within_s=60, what="an answer after the restart")
        wait_until(lambda: backlog(own_pulsar, model) == 0, within_s=30, what="empty backlog")
        assert node.stop() == 0


def test_a_token_opens_the_queue(token_pulsar: Broker) -> None:
    model, token = fresh("token"), token_pulsar.token("admin")
    with demo(token_pulsar.url, model, PULSAR_TOKEN=token, PULSAR_ADMIN_URL=token_pulsar.admin_url) as node:
        assert ask(node)[0] == 200
        assert node.stop() == 0
        assert token not in node.log()


@pytest.mark.parametrize("token", ["", "not.a.token"])
def test_a_wrong_token_is_said_and_ends_the_node(token_pulsar: Broker, token: str) -> None:
    node = demo(token_pulsar.url, fresh("refused"), gateway=False, PULSAR_TOKEN=token)
    try:
        node.start(wait=False)
        assert node.wait(40) == 78
        assert "refuses" in node.log() and "check PULSAR_TOKEN" in node.log()
    finally:
        node.__exit__()


def test_an_absent_pulsar_is_said_and_waited_for(own_pulsar: Broker) -> None:
    own_pulsar.stop()
    node = demo(own_pulsar.url, fresh("absent"))
    try:
        node.start(wait=False)
        node.wait_log("is not to be reached", "check PULSAR_URL")
        own_pulsar.start()
        node.wait_ready()
        assert ask(node)[0] == 200
    finally:
        node.__exit__()


def test_a_node_that_still_waits_for_pulsar_ends_when_told(own_pulsar: Broker) -> None:
    node = demo("pulsar://127.0.0.1:1", fresh("nobody"), gateway=False)
    try:
        node.start(wait=False)
        node.wait_log("is not to be reached")
        processes = node.tree()
        assert node.stop() == 0
        wait_until(lambda: not psutil.wait_procs(processes, 0)[1], within_s=10, what="end of all processes")
    finally:
        node.__exit__()


def check(**variables: str) -> tuple[int, str]:
    node = NodeProcess(variables)
    ran = subprocess.run(
        [sys.executable, "supervisor.py", "--check"], env=node.environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    node.__exit__()
    return ran.returncode, ran.stdout + ran.stderr


def test_check_says_what_it_found(pulsar: Broker) -> None:
    good, said = check(PULSAR_URL=pulsar.url, PULSAR_ADMIN_URL=pulsar.admin_url, RES_TOPIC_NAME=fresh("res"))
    assert good == 0
    assert "Pulsar at" in said and "nothing subscribes to" in said
    bad, said = check(PULSAR_URL="pulsar://127.0.0.1:1", NODE_TYPE="remote", MODEL_NAME="m", API_URL="http://127.0.0.1:1")
    assert bad == 78
    assert "check PULSAR_URL" in said and "API_URL http://127.0.0.1:1 is not to be reached" in said
