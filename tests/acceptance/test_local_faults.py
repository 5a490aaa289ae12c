"""A local node whose model server is killed, stopped, and made to refuse, one after the other, under load: nobody's request is lost."""

from __future__ import annotations

import shlex
import signal
import sys
import urllib.request
import uuid
from collections.abc import Callable

import psutil
import pytest

from tests.acceptance.test_node import fresh
from tests.real.brokers import Broker
from tests.real.node import NodeProcess
from tests.real.processes import wait_until
from tests.real.requester import Requester
from tests.real.topics import Topics

SERVER = f"{shlex.quote(sys.executable)} -m tests.real.upstream --port {{port}} --slots 4"
IN_A_ROUND = 12


def refuse(server: psutil.Process) -> None:
    words = server.cmdline()
    url, body = f"http://127.0.0.1:{words[words.index('--port') + 1]}/everybody", b'{"behaviour": "err-503"}'
    urllib.request.urlopen(urllib.request.Request(url, body, method="PUT"), timeout=10).close()


FAULTS: list[Callable[[psutil.Process], object]] = [lambda server: server.send_signal(signal.SIGKILL), psutil.Process.suspend, refuse]


def server_of(node: NodeProcess) -> psutil.Process:
    return next(p for p in node.tree() if p.cmdline()[1:3] == ["-m", "tests.real.upstream"])


@pytest.mark.whatever_queue
def test_a_model_server_that_fails_loses_nobody(pulsar: Broker) -> None:
    model = fresh("faults")
    queue = {"PULSAR_URL": pulsar.url, "RES_TOPIC_NAME": f"res-{model}"}
    variables = {"NODE_TYPE": "local", "MODEL_COMMAND": SERVER, "MODEL_NAME": model, **queue}
    with Topics(pulsar.url, model, f"res-{model}") as topics, Requester() as requester, NodeProcess(variables) as node:
        ids: list[str] = []
        for round_, fault in enumerate(FAULTS, 1):
            for _ in range(IN_A_ROUND):
                ids.append(str(uuid.uuid4()))
                data = {"mock": "mock?latency=300ms", "messages": [{"role": "user", "content": "hi"}]}
                topics.publish({"request_id": ids[-1], "stream": False, "endpoint": requester.http_url, "data": data})
            topics.flush()
            wait_until(lambda: requester.posts(ids[-IN_A_ROUND]), within_s=30, what="the round's first answer")
            fault(server_of(node))
            wait_until(lambda n=round_: node.log().count("backend 0 is ready") > n, within_s=30, what="a new model server")  # type: ignore[misc]
            wait_until(lambda: all(map(requester.posts, ids)), within_s=60, what="an answer for each")
        records = topics.records_of(set(ids))
        assert len({record["record_id"] for record in records}) == len(ids)
        ends = [seen.json["data"] for name in ids for seen in requester.posts(name)]
        assert len(ends) == len(ids) and [end for end in ends if "choices" not in end] == []
        log = node.log()
        assert "was killed by signal SIGKILL" in log and "it is stopped (SIGSTOP)" in log and "with status 503" in log
        assert node.stop() == 0
