"""To the queue, with a client that the tests play: what it does wrong, and how many producers it has."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest

from gateway.publisher import MessageTooBig, PublishFailed, PulsarPublisher


class Result(Enum):
    """As the client's own: only the names count."""

    Ok = 0
    Timeout = 1
    MessageTooBig = 2
    AlreadyClosed = 3


class FakeProducer:
    def __init__(self, client: FakeClient, topic: str) -> None:
        self.client, self.topic, self.closed = client, topic, threading.Event()

    def send_async(self, content: bytes, callback: Callable[[Result, object], None]) -> None:
        """Calls back from another thread, as the real one does; not at all where the result is None."""
        if self.client.result is not None:
            threading.Thread(target=callback, args=(self.client.result, None)).start()

    def close(self) -> None:
        self.closed.set()


class FakeClient:
    def __init__(self, result: Result | None = Result.Ok) -> None:
        self.result = result
        self.producers: list[FakeProducer] = []
        self.creating = threading.Event()
        self.may_create = threading.Event()
        self.may_create.set()
        self.refusal: Exception | None = None
        self.refused = 0

    def create_producer(self, topic: str, **_: Any) -> FakeProducer:
        self.creating.set()
        assert self.may_create.wait(10)
        if self.refusal is not None:
            self.refused += 1
            raise self.refusal
        self.producers.append(FakeProducer(self, topic))
        return self.producers[-1]

    def close(self) -> None:
        """Nothing to close."""


def publish(client: FakeClient, *models: str, **options: Any) -> None:
    """One after the other, on one loop."""

    async def run() -> None:
        publisher = PulsarPublisher(client, **options)
        try:
            for model in models:
                await publisher.publish(model, b"{}")
        finally:
            publisher.close()

    asyncio.run(run())


def test_a_model_has_one_producer_on_its_topic() -> None:
    client = FakeClient()
    publish(client, "a", "b", "a")
    assert [producer.topic for producer in client.producers] == ["model-a", "model-b"]


def test_the_longest_unused_producer_makes_room() -> None:
    client = FakeClient()
    publish(client, "a", "b", "a", "c", "a", max_producers=2)
    assert [producer.topic for producer in client.producers] == ["model-a", "model-b", "model-c"]
    assert client.producers[1].closed.wait(10)
    assert not client.producers[0].closed.is_set()


def test_many_at_once_share_one_producer() -> None:
    client = FakeClient()

    async def run() -> None:
        publisher = PulsarPublisher(client)
        await asyncio.gather(*(publisher.publish("a", b"{}") for _ in range(20)))

    asyncio.run(run())
    assert len(client.producers) == 1


def test_a_producer_in_use_makes_no_room() -> None:
    client = FakeClient(result=None)

    async def run() -> None:
        publisher = PulsarPublisher(client, max_producers=1, timeout_s=5)
        busy = asyncio.create_task(publisher.publish("a", b"{}"))
        await asyncio.sleep(0)
        with pytest.raises(PublishFailed, match="too many"):
            await publisher.publish("b", b"{}")
        busy.cancel()

    asyncio.run(run())


@pytest.mark.parametrize(("result", "kind"), [(Result.Timeout, PublishFailed), (Result.MessageTooBig, MessageTooBig)])
def test_a_refusal_of_the_queue_is_told_and_the_producer_kept(result: Result, kind: type[Exception]) -> None:
    client = FakeClient(result)
    with pytest.raises(kind, match=result.name):
        publish(client, "a")
    assert not client.producers[0].closed.is_set()


def test_a_producer_that_is_broken_is_made_anew() -> None:
    client = FakeClient(Result.AlreadyClosed)

    async def run() -> None:
        publisher = PulsarPublisher(client)
        with pytest.raises(PublishFailed, match="AlreadyClosed"):
            await publisher.publish("a", b"{}")
        client.result = Result.Ok
        await publisher.publish("a", b"{}")

    asyncio.run(run())
    assert len(client.producers) == 2


def test_a_queue_that_is_away_is_told_in_time_and_tried_again() -> None:
    client = FakeClient()
    client.may_create.clear()

    async def run() -> None:
        publisher = PulsarPublisher(client, timeout_s=0.05)
        with pytest.raises(PublishFailed, match="Timeout"):
            await publisher.publish("a", b"{}")
        client.refusal = ConnectionError("away")
        client.may_create.set()
        while client.refused == 0:
            await asyncio.sleep(0.005)
        client.refusal = None
        while publisher.producers:  # the loop learns of the failure, which is not for those who come later
            await asyncio.sleep(0)
        await publisher.publish("a", b"{}")

    asyncio.run(run())


def test_why_there_is_no_producer_is_told() -> None:
    client = FakeClient()
    client.refusal = ConnectionError("away")
    with pytest.raises(PublishFailed, match="ConnectionError"):
        publish(client, "a")


def test_no_confirmation_is_a_failure_in_time() -> None:
    with pytest.raises(PublishFailed, match="Timeout"):
        publish(FakeClient(result=None), "a", timeout_s=0.05)
