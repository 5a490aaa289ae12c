"""The publisher on a client that fails as Pulsar's does: nothing is lost, nobody waits for another's topic."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pulsar
import pytest
from loguru import logger

from messaging import publisher as module
from messaging.publisher import Publish, Publisher
from tests.real.processes import wait_until


class FakeClient:
    """Opens a producer for a topic; `refusing` topics raise, `slow` ones take a second to raise."""

    def __init__(self) -> None:
        self.refusing: set[str] = set()
        self.slow: set[str] = set()
        self.failing_sends = 0
        self.odd_sends = 0
        self.sent: list[tuple[str, bytes]] = []
        self.opened: list[str] = []

    def create_producer(self, topic: str, **_: Any) -> FakeProducer:
        self.opened.append(topic)
        if topic in self.slow:
            time.sleep(1)
        if topic in self.refusing | self.slow:
            raise pulsar.Timeout("no")
        return FakeProducer(self, topic)


class FakeProducer:
    def __init__(self, client: FakeClient, topic: str) -> None:
        self._client, self._topic = client, topic

    def send_async(self, payload: bytes, done: Callable[[Any, Any], None], **_: Any) -> None:
        if self._client.odd_sends:
            self._client.odd_sends -= 1
            raise ValueError("what the client makes of an odd property")
        failed = self._client.failing_sends > 0
        self._client.failing_sends -= failed
        if not failed:
            self._client.sent.append((self._topic, payload))
        threading.Thread(target=done, args=(pulsar.Result.Timeout if failed else pulsar.Result.Ok, None)).start()


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    monkeypatch.setattr(module, "RETRY_EACH_S", 0.05)
    return FakeClient()


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logger.add(lambda line: lines.append(str(line)), level="INFO", format="{message}")
    yield lines
    logger.remove(handler)


def confirmed_of(publisher: Publisher, *publishes: Publish) -> list[Publish]:
    """Those that were confirmed; the list grows."""
    confirmed: list[Publish] = []
    for publish in publishes:
        publisher.publish(publish, lambda p=publish: confirmed.append(p))  # type: ignore[misc]
    return confirmed


def test_what_fails_is_tried_until_it_is_confirmed(client: FakeClient, said: list[str]) -> None:
    client.failing_sends, client.odd_sends = 3, 1
    publisher = Publisher(client)
    many = [Publish("t", b"%d" % n) for n in range(10)]
    confirmed = confirmed_of(publisher, *many)
    wait_until(lambda: len(confirmed) == 10, within_s=5, what="all confirmed")
    assert sorted(client.sent) == sorted(("t", p.payload) for p in many)
    assert publisher.unconfirmed() == 0
    assert sum("takes no messages" in line for line in said) == sum("takes messages again" in line for line in said) >= 1
    publisher.close()


def test_a_topic_that_cannot_be_opened_is_opened_once_a_try_and_delays_no_other(client: FakeClient) -> None:
    client.slow = {"slow"}
    publisher = Publisher(client)
    lost = confirmed_of(publisher, *[Publish("slow", b"x") for _ in range(50)])
    good = confirmed_of(publisher, *[Publish("good", b"y") for _ in range(50)])
    wait_until(lambda: len(good) == 50, within_s=2.5, what="the other topic's messages")
    assert client.opened.count("slow") <= 3
    assert not lost and publisher.unconfirmed() == 50
    client.slow = set()
    wait_until(lambda: len(lost) == 50, within_s=5, what="those that had to wait")
    publisher.close()


def test_trouble_is_said_once(client: FakeClient, said: list[str]) -> None:
    client.refusing = {"t"}
    publisher = Publisher(client)
    confirmed = confirmed_of(publisher, *[Publish("t", b"x") for _ in range(20)])
    wait_until(lambda: client.opened.count("t") > 5, within_s=5, what="several tries")
    assert [line for line in said if "takes no messages" in line] == said and len(said) == 1
    client.refusing = set()
    wait_until(lambda: len(confirmed) == 20, within_s=5, what="all confirmed")
    assert len(said) == 2
    publisher.close()
