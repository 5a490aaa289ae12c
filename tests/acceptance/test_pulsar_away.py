"""A node whose Pulsar goes away, in each way that it can, and comes back: it says so once, and receives again."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.real.brokers import Broker
from tests.real.node import NodeProcess
from tests.real.processes import wait_until
from tests.real.proxy import Proxy
from tests.real.requester import Requester
from tests.real.topics import Topics
from tests.real.upstream import Upstream

LOST, BACK = "is not to be reached", "subscribed at"
NOTICES_WITHIN_S = 20.0
HEALS_WITHIN_S = 20.0


@dataclass
class Scene:
    """A node behind a proxy; its topics are written to past the proxy."""

    node: NodeProcess
    proxy: Proxy
    topics: Topics
    requester: Requester
    pulsar: Broker

    def publish(self, **body: Any) -> str:
        """A request's id, once the broker has it."""
        request_id = str(uuid.uuid4())
        data = {"model": self.node.model, "messages": [{"role": "user", "content": request_id}], **body}
        self.topics.publish(
            {"request_id": request_id, "stream": False, "endpoint": self.requester.http_url, "data": data, "metadata": {}}
        )
        self.topics.flush()
        return request_id

    def wait_answer(self, request_id: str, within_s: float = HEALS_WITHIN_S) -> None:
        began_s = time.monotonic()
        try:
            wait_until(lambda: self.requester.posts(request_id), within_s=within_s, what="answer")
        except TimeoutError as error:
            raise AssertionError(f"{error}; the node's log:\n{self.node.log()[-3000:]}") from None
        print(f"answered after {time.monotonic() - began_s:.1f} s")

    def wait_said(self, words: str, times: int, within_s: float) -> None:
        """`words` stand in the log for the `times`th time."""
        began_s = time.monotonic()
        try:
            wait_until(lambda: self.node.log().count(words) == times, within_s=within_s, what=f"{words!r}, {times} times")
        except TimeoutError as error:
            raise AssertionError(f"{error}; the node's log:\n{self.node.log()[-3000:]}") from None
        print(f"{words!r} after {time.monotonic() - began_s:.1f} s")

    def stats(self) -> dict[str, Any]:
        found = self.pulsar.admin("GET", f"persistent/public/default/model-{self.node.model}/stats")
        subscription: dict[str, Any] = found["subscriptions"][f"model-{self.node.model}-subscription"]
        return subscription

    def wait_settled(self, within_s: float = 20.0) -> None:
        """Nothing unacknowledged, and one consumer: older ones have closed."""
        done = lambda: (self.stats()["msgBacklog"], len(self.stats()["consumers"])) == (0, 1)  # noqa: E731
        wait_until(done, within_s=within_s, what="empty backlog with one consumer", every_s=0.2)


def node_at(url: str, **variables: str) -> NodeProcess:
    model = f"away-{uuid.uuid4().hex[:8]}"
    return NodeProcess({"MODEL_NAME": model, "PULSAR_URL": url, "RES_TOPIC_NAME": f"res-{model}", "NODE_TYPE": "demo", **variables})


def topics_of(node: NodeProcess, pulsar: Broker) -> Topics:
    return Topics(pulsar.url, node.model, f"res-{node.model}")


# Each way on the broker that it says more about; the other one was seen to do the same.
on_pulsar, on_embedded = (pytest.mark.parametrize("_modules_own_pulsar", [kind], indirect=True) for kind in ("pulsar", "embedded"))


@pytest.fixture
def scene(own_pulsar: Broker) -> Iterator[Scene]:
    with Proxy(own_pulsar.url) as proxy, Requester() as requester, node_at(proxy.url) as node, topics_of(node, own_pulsar) as topics:
        found = Scene(node, proxy, topics, requester, own_pulsar)
        found.wait_answer(found.publish())
        yield found


@on_pulsar
def test_a_cut_network_is_said_once_and_healed(scene: Scene) -> None:
    scene.proxy.refuse()
    scene.proxy.cut()
    scene.wait_said(LOST, 1, NOTICES_WITHIN_S)
    waiting = scene.publish()
    time.sleep(4)  # longer than between two tries, of which none may be said
    scene.proxy.accept()
    scene.wait_answer(waiting)
    scene.wait_said(BACK, 2, HEALS_WITHIN_S)
    assert scene.node.log().count(LOST) == 1
    scene.wait_settled()


def test_connections_that_are_cut_for_a_moment_lose_nothing(scene: Scene) -> None:
    ids = []
    for _ in range(5):
        ids.append(scene.publish())
        scene.proxy.cut()
    for request_id in ids:
        scene.wait_answer(request_id)
    assert all(len(scene.requester.posts(request_id)) == 1 for request_id in ids)


@on_pulsar
def test_a_half_open_connection_is_noticed_long_before_its_keep_alive(scene: Scene) -> None:
    """What the broker sends into it, the one message that a node may prefetch, comes back when the broker has noticed."""
    scene.proxy.swallow()
    swallowed, *later = [scene.publish() for _ in range(4)]
    for request_id in later:
        scene.wait_answer(request_id, NOTICES_WITHIN_S + 1)
    scene.wait_said("it is opened anew", 1, 0.1)
    scene.proxy.forget()
    scene.wait_answer(swallowed)
    assert all(len(scene.requester.posts(request_id)) == 1 for request_id in (swallowed, *later))


@on_embedded
def test_a_silent_network_is_said_once_and_healed(scene: Scene) -> None:
    """New connections too are taken and never answered."""
    scene.proxy.swallows = True
    scene.proxy.swallow()
    scene.wait_said(LOST, 1, NOTICES_WITHIN_S)
    scene.proxy.swallows = False
    scene.proxy.cut()
    scene.proxy.forget()
    scene.wait_answer(scene.publish())
    assert scene.node.log().count(LOST) == 1


@on_pulsar
def test_a_broker_that_was_killed_and_started_again(scene: Scene) -> None:
    scene.pulsar.kill()
    scene.wait_said(LOST, 1, NOTICES_WITHIN_S)
    scene.pulsar.start()
    scene.wait_said(BACK, 2, HEALS_WITHIN_S)
    with topics_of(scene.node, scene.pulsar) as scene.topics:
        scene.wait_answer(scene.publish())
        scene.wait_settled(60)


@on_pulsar
def test_a_topic_that_was_deleted_by_force(scene: Scene) -> None:
    scene.pulsar.admin("DELETE", f"persistent/public/default/model-{scene.node.model}?force=true")
    with topics_of(scene.node, scene.pulsar) as scene.topics:
        for _ in range(3):
            scene.wait_answer(scene.publish())
        scene.wait_settled()


@on_pulsar
def test_nothing_that_runs_comes_again_when_the_subscription_is_opened_anew(own_pulsar: Broker) -> None:
    """The network is cut for a moment, so that the broker gives what runs to the other consumer; both are of this node."""
    body = {"mock": "mock?latency=12s"}
    with Upstream() as upstream, Proxy(own_pulsar.url) as proxy, Requester() as requester:
        variables = {"NODE_TYPE": "remote", "API_URL": upstream.url}
        with node_at(proxy.url, **variables) as node, topics_of(node, own_pulsar) as topics:
            scene = Scene(node, proxy, topics, requester, own_pulsar)
            running = [scene.publish(**body) for _ in range(3)]
            wait_until(lambda: upstream.stats()["in_flight"] == 3, within_s=10, what="three that run")
            proxy.refuse()
            proxy.cut()
            scene.wait_said(LOST, 1, NOTICES_WITHIN_S)
            proxy.accept()
            scene.wait_said(BACK, 2, HEALS_WITHIN_S)
            for request_id in running:
                scene.wait_answer(request_id)
            scene.wait_settled()
            assert upstream.stats()["received"] == 3
            assert all(len(requester.posts(request_id)) == 1 for request_id in running)


@pytest.mark.parametrize("token_pulsar", ["pulsar"], indirect=True)
def test_a_token_that_is_rotated_is_read_again(token_pulsar: Broker, tmp_path: Path) -> None:
    """By a node that is cut off while its file holds one that is refused."""
    file = tmp_path / "token"
    file.write_text(token_pulsar.token("admin"))
    with Proxy(token_pulsar.url) as proxy, node_at(proxy.url, PULSAR_TOKEN_FILE=str(file)) as node:
        file.write_text("not.a.token")
        proxy.cut()
        node.wait_log("refuses the token", within_s=NOTICES_WITHIN_S)
        file.write_text(token_pulsar.token("admin") + "\n")
        wait_until(lambda: node.log().count(BACK) == 2, within_s=HEALS_WITHIN_S, what="a new subscription")
        assert node.log().count("refuses the token") == 1
