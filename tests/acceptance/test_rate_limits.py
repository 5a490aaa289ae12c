"""A real node at a real upstream that limits its requests: bench/rate_limits.py measures the same for minutes."""

from __future__ import annotations

import time
import uuid

import pytest

from tests.real.brokers import Broker
from tests.real.node import NodeProcess
from tests.real.requester import Requester
from tests.real.topics import Topics
from tests.real.upstream import Upstream


def node_of(pulsar: Broker, upstream: Upstream, model: str, **more: str) -> NodeProcess:
    variables = {"NODE_TYPE": "remote", "MODEL_NAME": model, "API_URL": upstream.url, "PULSAR_URL": pulsar.url,
                 "RES_TOPIC_NAME": f"res-{model}", "BACKEND_PROCESSES": "2"}  # fmt: skip
    return NodeProcess({**variables, **more})


def publish(topics: Topics, requester: Requester, count: int) -> set[str]:
    ids = {str(uuid.uuid4()) for _ in range(count)}
    for request_id in ids:
        data = {"messages": [{"role": "user", "content": "hello"}], "mock": "mock?latency=200ms"}
        topics.publish({"request_id": request_id, "stream": False, "endpoint": requester.http_url, "data": data})
    topics.flush()
    return ids


@pytest.mark.whatever_queue
def test_a_long_queue_is_worked_off_at_the_upstreams_pace(pulsar: Broker) -> None:
    model = f"paced-{uuid.uuid4().hex[:8]}"
    with Upstream(rpm=600, burst=10) as upstream, Requester() as requester, Topics(pulsar.url, model, f"res-{model}") as topics:
        ids = publish(topics, requester, 100)
        with node_of(pulsar, upstream, model):
            records = topics.records_of(ids, 60)
            stats = upstream.stats()
    assert {record["outcome"] for record in records} == {"answered"}
    assert stats["answered"] == 100
    assert stats["limited"] <= 5, "a client that only tries again has hundreds"


def test_what_a_node_may_not_send_other_nodes_get(pulsar: Broker) -> None:
    """One has a limit of one a second, set by hand; the other has none: 60 requests do not take the first a minute."""
    model = f"shared-{uuid.uuid4().hex[:8]}"
    with Upstream() as upstream, Requester() as requester, Topics(pulsar.url, model, f"res-{model}") as topics:
        with node_of(pulsar, upstream, model, RATE_LIMIT_RPM="60") as slow:
            ids = publish(topics, requester, 60)
            slow.wait_log(" answered in ")
            with node_of(pulsar, upstream, model) as free:
                started_s = time.monotonic()
                topics.records_of(ids, 60)
                took_s = time.monotonic() - started_s
                assert free.log().count(" answered in ") >= 30
        assert took_s < 30


@pytest.mark.whatever_queue
def test_refusals_pause_the_node_and_nothing_is_lost(pulsar: Broker) -> None:
    """An upstream that tells nothing beforehand."""
    model = f"untold-{uuid.uuid4().hex[:8]}"
    with Upstream(rpm=300, burst=3, untold=1) as upstream, Requester() as requester, Topics(pulsar.url, model, f"res-{model}") as topics:
        with node_of(pulsar, upstream, model) as node:
            records = topics.records_of(publish(topics, requester, 40), 90)
            assert "receiving pauses" in node.log()
        assert {(record["outcome"], record["attempt"]) for record in records} == {("answered", 1)}, "a refusal counts no attempt"
        assert upstream.stats()["answered"] == 40
