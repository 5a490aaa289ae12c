"""Two local nodes on one topic: each gets as much as it can do, by its limit."""

from __future__ import annotations

import contextlib
import shlex
import sys
import uuid
from collections import Counter

from tests.acceptance.test_node import fresh
from tests.real.brokers import Broker
from tests.real.node import NodeProcess
from tests.real.requester import Requester
from tests.real.topics import Topics

REQUESTS, SLOTS = 160, (2, 6)


def local(pulsar: Broker, model: str, slots: int) -> NodeProcess:
    command = f"{shlex.quote(sys.executable)} -m tests.real.upstream --port {{port}} --slots {slots}"
    return NodeProcess({
        "NODE_TYPE": "local", "MODEL_COMMAND": command, "MODEL_NAME": model, "PULSAR_URL": pulsar.url,
        "RES_TOPIC_NAME": f"res-{model}", "LOCAL_ADAPTIVE": "false",
    })  # fmt: skip


def test_work_goes_to_nodes_in_proportion_to_their_limits(pulsar: Broker) -> None:
    """The model servers' slots are the limits; MAX_PROCESS_NUM would allow more. 1 : 3 within a tenth."""
    model = fresh("shares")
    with contextlib.ExitStack() as stack:
        topics = stack.enter_context(Topics(pulsar.url, model, f"res-{model}"))
        requester = stack.enter_context(Requester())
        for slots in SLOTS:
            stack.enter_context(local(pulsar, model, slots))
        ids = [str(uuid.uuid4()) for _ in range(REQUESTS)]
        for request_id in ids:
            data = {"mock": "mock?latency=500ms", "messages": [{"role": "user", "content": "hi"}]}
            topics.publish({"request_id": request_id, "stream": False, "endpoint": requester.http_url, "data": data})
        topics.flush()
        records = sorted(topics.records_of(set(ids), within_s=60), key=lambda record: record["timestamps_ms"]["answered"])
        busy = records[SLOTS[1] : -2 * sum(SLOTS)]  # while there was enough for both
        few, many = sorted(Counter(record["node"]["id"] for record in busy).values())
        assert 0.9 <= (many / few) / 3 <= 1.1, f"{few} and {many} of {len(busy)}"
        assert all(record["attempt"] == 1 for record in records)
