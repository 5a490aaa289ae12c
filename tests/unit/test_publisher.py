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
    """Opens producers. `opening`: topic → what is raised; `held`: topics whose opening waits for the event; `results`:
    payload → what becomes of it, in the caller's thread as the real client does it, a result or an exception."""

    def __init__(self) -> None:
        self.opening: dict[str, Exception] = {}
        self.held: dict[str, threading.Event] = {}
        self.results: dict[bytes, Any] = {}
        self.failing_sends = 0
        self.sent: list[tuple[str, bytes]] = []
        self.opened: list[str] = []

    def create_producer(self, topic: str, **_: Any) -> FakeProducer:
        self.opened.append(topic)
        if topic in self.held:
            self.held[topic].wait(10)
        if topic in self.opening:
            raise self.opening[topic]
        return FakeProducer(self, topic)


class FakeProducer:
    def __init__(self, client: FakeClient, topic: str) -> None:
        self._client, self._topic = client, topic

    def send_async(self, payload: bytes, done: Callable[[Any, Any], None], **_: Any) -> None:
        result = self._client.results.get(payload, pulsar.Result.Ok)
        if isinstance(result, Exception):
            raise result
        if self._client.failing_sends > 0:
            self._client.failing_sends -= 1
            result = pulsar.Result.Timeout
        if result == pulsar.Result.Ok:
            self._client.sent.append((self._topic, payload))
        if result in (pulsar.Result.Ok, pulsar.Result.Timeout):
            threading.Thread(target=done, args=(result, None)).start()
        else:
            done(result, None)


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
    client.failing_sends = 3
    publisher = Publisher(client)
    many = [Publish("t", b"%d" % n) for n in range(10)]
    confirmed = confirmed_of(publisher, *many)
    wait_until(lambda: len(confirmed) == 10, within_s=5, what="all confirmed")
    assert sorted(client.sent) == sorted(("t", p.payload) for p in many)
    assert publisher.unconfirmed() == 0
    assert sum("takes no messages" in line for line in said) == sum("takes messages again" in line for line in said) >= 1
    publisher.close()


def test_a_topic_that_is_long_in_opening_delays_no_other(client: FakeClient) -> None:
    """Not even what another topic has to try again."""
    client.held["slow"] = threading.Event()
    client.failing_sends = 3
    publisher = Publisher(client)
    slow = confirmed_of(publisher, *[Publish("slow", b"x") for _ in range(50)])
    good = confirmed_of(publisher, *[Publish("good", b"y") for _ in range(50)])
    wait_until(lambda: len(good) == 50, within_s=5, what="the other topic's messages")
    assert client.opened.count("slow") == 1
    assert not slow and publisher.unconfirmed() == 50
    client.held["slow"].set()
    wait_until(lambda: len(slow) == 50, within_s=5, what="those that had to wait")
    assert publisher.unconfirmed() == 0
    publisher.close()


@pytest.mark.parametrize("error", [pulsar.Timeout("no"), UnicodeError("a name"), TypeError("incompatible arguments")])
def test_trouble_in_opening_is_said_once(client: FakeClient, said: list[str], error: Exception) -> None:
    client.opening["t"] = error
    publisher = Publisher(client)
    confirmed = confirmed_of(publisher, *[Publish("t", b"x") for _ in range(20)])
    wait_until(lambda: client.opened.count("t") > 5, within_s=5, what="several tries")
    assert [line for line in said if "takes no messages" in line] == said and len(said) == 1
    del client.opening["t"]
    wait_until(lambda: len(confirmed) == 20, within_s=5, what="all confirmed")
    assert len(said) == 2 and "are waiting" in said[1]
    publisher.close()


@pytest.mark.parametrize("error", [ValueError("odd"), UnicodeError("odd"), TypeError("odd")])
def test_a_message_that_the_client_cannot_send_is_said_once_and_holds_up_no_other(
    client: FakeClient, said: list[str], error: Exception
) -> None:
    client.results[b"odd"] = error
    publisher = Publisher(client)
    odd = confirmed_of(publisher, Publish("t", b"odd"))
    wait_until(lambda: any("kept and tried again" in line for line in said), within_s=5, what="the notice")
    for n in range(5):
        others = confirmed_of(publisher, *[Publish("t", b"%d %d" % (n, m)) for m in range(20)])
        wait_until(lambda: len(others) == 20, within_s=2, what="the others")  # noqa: B023
    assert not odd and publisher.unconfirmed() == 1
    assert len(said) == 1 and "Traceback" in said[0]
    del client.results[b"odd"]
    wait_until(lambda: len(odd) == 1, within_s=5, what="the odd one")
    publisher.close()


def test_what_is_too_big_is_dropped(client: FakeClient, said: list[str]) -> None:
    client.results[b"big"] = pulsar.Result.MessageTooBig
    publisher = Publisher(client)
    confirmed = confirmed_of(publisher, Publish("t", b"big"), Publish("t", b"small"))
    wait_until(lambda: len(confirmed) == 2, within_s=5, what="both settled")
    assert client.sent == [("t", b"small")] and len(said) == 1 and "is dropped" in said[0]
    publisher.close()


def test_a_producer_that_has_ended_is_replaced(client: FakeClient) -> None:
    publisher = Publisher(client)
    first = confirmed_of(publisher, Publish("t", b"first"))
    wait_until(lambda: len(first) == 1, within_s=5, what="the first")
    client.results[b"second"] = pulsar.Result.AlreadyClosed
    second = confirmed_of(publisher, Publish("t", b"second"))
    del client.results[b"second"]
    wait_until(lambda: len(second) == 1, within_s=5, what="the second")
    assert client.opened == ["t", "t"]
    publisher.close()


def test_a_confirmation_that_fails_ends_no_thread_of_the_client(client: FakeClient, said: list[str]) -> None:
    publisher = Publisher(client)
    publisher.publish(Publish("t", b"x"), lambda: 1 // 0)  # type: ignore[arg-type]
    wait_until(lambda: any("ZeroDivisionError" in line for line in said), within_s=5, what="the notice")
    good = confirmed_of(publisher, Publish("t", b"y"))
    wait_until(lambda: len(good) == 1 and publisher.unconfirmed() == 0, within_s=5, what="the next")
    publisher.close()


def test_ten_thousand_that_wait_cost_little(client: FakeClient) -> None:
    client.held["t"] = threading.Event()
    publisher, confirmed, used_s = Publisher(client), list[int](), time.process_time()
    for n in range(10_000):
        publisher.publish(Publish("t", b"x"), lambda n=n: confirmed.append(n))  # type: ignore[misc]
    assert time.process_time() - used_s < 2 and publisher.unconfirmed() == 10_000
    client.opening["t"] = pulsar.Timeout("no")
    client.held.pop("t").set()
    used_s = time.process_time()
    wait_until(lambda: client.opened.count("t") > 20, within_s=10, what="twenty tries", every_s=0.05)
    assert time.process_time() - used_s < 0.5  # none of them looks at all that wait
    publisher.close()
