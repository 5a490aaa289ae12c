"""An upstream that serves the node no more: what is said, who gets the requests, what ends the node and what does not."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from errors import ExitCode
from tests.real.brokers import Broker
from tests.real.kubernetes_api import KubernetesApi, serving
from tests.real.node import NodeProcess
from tests.real.processes import wait_until
from tests.real.requester import Requester
from tests.real.topics import Topics
from tests.real.upstream import Upstream

KEY = "sk-proj-expiring0123456789abcdef"


@dataclass
class Scene:
    """A topic, a requester's service and an upstream; the test starts the nodes."""

    pulsar: Broker
    model: str
    topics: Topics
    requester: Requester
    upstream: Upstream

    def node(self, **variables: str) -> NodeProcess:
        return NodeProcess(
            {
                "NODE_TYPE": "remote", "MODEL_NAME": self.model, "API_URL": self.upstream.url, "API_KEY": KEY, "RECHECK_S": "1",
                "PULSAR_URL": self.pulsar.url, "RES_TOPIC_NAME": f"res-{self.model}", "MAX_PROCESS_NUM": "8", **variables,
            }
        )  # fmt: skip

    def ask(self, behaviour: str = "mock", count: int = 1) -> list[str]:
        ids = [str(uuid.uuid4()) for _ in range(count)]
        for request_id in ids:
            data = {"mock": behaviour, "messages": [{"role": "user", "content": "hi"}]}
            self.topics.publish({"request_id": request_id, "stream": False, "endpoint": self.requester.http_url, "data": data})
        return ids

    def results(self, ids: list[str]) -> list[dict[str, object]]:
        wait_until(lambda: all(map(self.requester.posts, ids)), within_s=40, what="an answer to each")
        assert all(len(self.requester.posts(request_id)) == 1 for request_id in ids), "answered twice"
        return [self.requester.posts(request_id)[0].json["data"] for request_id in ids]


@pytest.fixture
def scene(pulsar: Broker) -> Iterator[Scene]:
    model = f"trouble-{uuid.uuid4().hex[:8]}"
    with Topics(pulsar.url, model, f"res-{model}") as topics, Requester() as requester, Upstream(key=KEY) as upstream:
        yield Scene(pulsar, model, topics, requester, upstream)


def test_a_key_that_expires_ends_the_node_and_costs_no_request(scene: Scene, tmp_path: Path) -> None:
    """One Event, everything given back, exit 78; and the key is nowhere to be read."""
    with serving(KubernetesApi(0)) as api:
        seen_of = {"KUBECONFIG": str(api.kubeconfig(tmp_path)), "AIMODEL_NAME": "llama", "AIMODEL_NAMESPACE": "models", "DEBUG": "true"}
        with scene.node(**seen_of) as node:
            assert all("choices" in found for found in scene.results(scene.ask(count=10)))
            assert not any(KEY in " ".join(process.cmdline()) for process in node.tree())
            scene.upstream.everybody("err-401")
            held = scene.ask(count=20)
            assert node.wait(30) == ExitCode.CONFIGURATION
            log = node.log()
        (event,) = api.added()
        assert (event["reason"], event["type"], event["count"]) == ("AuthenticationError", "Warning", 1)
        assert "Incorrect API key" in event["message"] and "API_KEY" in event["message"]
        assert log.count("AuthenticationError:") == 1 and "API_KEY" in log
        assert not any(map(scene.requester.posts, held)), "they belong to other nodes"
        scene.upstream.everybody("")
        with scene.node(**seen_of) as other:
            assert all("choices" in found for found in scene.results(held))
            records = scene.topics.records_of(set(held), 20)
            log += other.log()
        assert {record["attempt"] for record in records} == {1}
    answers = [scene.requester.posts(request_id)[0].text.decode() for request_id in held]
    assert not any(KEY in where for where in [log, str(records), str(api.asked), *answers])


@pytest.mark.whatever_queue
def test_in_a_cluster_the_node_stays_not_ready_and_recovers(scene: Scene) -> None:
    with scene.node(KUBERNETES_SERVICE_HOST="10.0.0.1") as node:
        scene.upstream.everybody("err-404-model")
        held = scene.ask(count=5)
        node.wait_log("ConfigurationError")
        scene.upstream.everybody("")
        assert all("choices" in found for found in scene.results(held))
        log = node.wait_log("the node works again")
    assert log.count("ConfigurationError:") == 1


@pytest.mark.whatever_queue
def test_out_of_quota_nothing_is_asked_but_a_probe_until_money_comes(scene: Scene) -> None:
    with scene.node(RECHECK_S="2") as node:
        scene.upstream.everybody("err-quota")
        held = scene.ask(count=30)
        node.wait_log("APIQuotaExceededError")
        scene.upstream.reset()
        wait_until(lambda: scene.upstream.stats()["received"] > 0, within_s=20, what="a probe")
        assert scene.upstream.stats()["received"] <= 2 and not any(map(scene.requester.posts, held))
        scene.upstream.everybody("")
        assert all("choices" in found for found in scene.results(held))
        assert node.wait_log("the node works again").count("APIQuotaExceededError:") == 1
        assert {record["attempt"] for record in scene.topics.records_of(set(held), 20)} == {1}


@pytest.mark.whatever_queue
@pytest.mark.parametrize("odd", ["err-401-unknown", "err-403-unknown"])
def test_one_odd_refusal_stops_nobody(scene: Scene, odd: str) -> None:
    with scene.node(MAX_ATTEMPTS="2") as node:
        refused, well = scene.ask(odd), scene.ask(count=5)
        assert all("choices" in found for found in scene.results(well))
        assert all("error" in found for found in scene.results(refused))
        node.wait_log("concerned that request alone")
        assert "AuthenticationError" not in node.log()


@pytest.mark.whatever_queue
def test_a_refusal_in_no_known_words_that_a_probe_meets_too_stops_the_node(scene: Scene) -> None:
    with scene.node() as node:
        scene.upstream.everybody("err-401-unknown")
        held = scene.ask(count=3)
        assert node.wait(30) == ExitCode.CONFIGURATION
        assert node.log().count("AuthenticationError:") == 1
    assert not any(map(scene.requester.posts, held))


@pytest.mark.whatever_queue
def test_with_answers_wanted_requests_get_the_trouble_and_the_upstream_peace(scene: Scene) -> None:
    with scene.node(ON_TROUBLE="answer", RECHECK_S="60") as node:
        scene.upstream.everybody("err-401")
        assert scene.results(scene.ask())[0]["error"]["code"] == "invalid_api_key"  # type: ignore[index]
        node.wait_log("AuthenticationError")
        scene.upstream.reset()
        assert all(found["error"]["code"] == "invalid_api_key" for found in scene.results(scene.ask(count=20)))  # type: ignore[index]
        assert scene.upstream.stats()["received"] == 0


@pytest.mark.whatever_queue
def test_an_upstream_that_comes_later_than_the_node_costs_no_attempt(scene: Scene) -> None:
    scene.upstream.stop()
    with scene.node() as node:
        waiting = scene.ask(count=3)
        node.wait_log("Nothing is received before it is reached")
        scene.upstream.start()
        assert all("choices" in found for found in scene.results(waiting))
        node.wait_log("the upstream was reached")
        assert {record["attempt"] for record in scene.topics.records_of(set(waiting), 20)} == {1}
