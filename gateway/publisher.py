"""Requests → the queue. One producer a model, made when first needed, the oldest idle one closed when there are too many."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import pulsar
from loguru import logger

from messaging.client import settle_thread
from messaging.topics import request_topic

# Pulsar's default limit of 5 MiB counts the message's own fields too.
MAX_MESSAGE_BYTES = 5 * 1024 * 1024 - 8 * 1024
PUBLISH_TIMEOUT_S = 10.0
MAX_PRODUCERS = 256
# The producer heals from these by itself; after any other failure it is made anew.
_PASSING = frozenset({"Timeout", "ProducerQueueIsFull", "MemoryBufferIsFull", "MessageTooBig"})


class PublishFailed(Exception):
    """The queue did not take the message; says why, for the requester."""


class MessageTooBig(PublishFailed):
    """It never will: the message is over the queue's limit."""


class Publisher(Protocol):
    async def publish(self, model: str, payload: bytes) -> None:
        """Returns when the queue has the message. Raises PublishFailed within a bounded time."""


@dataclasses.dataclass
class _Topic:
    producer: asyncio.Future[pulsar.Producer]
    in_flight: int = 0


class PulsarPublisher:
    """Used on one event loop only; what blocks in the client runs in threads of its own.

    Creating it connects to nothing: a queue that is away shows with the first request.
    """

    def __init__(self, client: pulsar.Client, *, timeout_s: float = PUBLISH_TIMEOUT_S, max_producers: int = MAX_PRODUCERS) -> None:
        self._client = client
        self._timeout_s, self._max_producers = timeout_s, max_producers
        self._topics: OrderedDict[str, _Topic] = OrderedDict()
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="pulsar")
        self._away = False

    @property
    def producers(self) -> int:
        """How many there are, those in the making included."""
        return len(self._topics)

    async def publish(self, model: str, payload: bytes) -> None:
        topic, by_s = self._topic(model), asyncio.get_running_loop().time() + self._timeout_s
        topic.in_flight += 1
        try:
            result = await _send(await self._made(topic, by_s), payload, by_s)
        except TimeoutError:
            result = "Timeout"
        except Exception as error:  # whatever the client raises means that there is no producer
            result = type(error).__name__
            self._forget(model, topic)
        finally:
            topic.in_flight -= 1
        self._judge(model, topic, result)

    async def _made(self, topic: _Topic, by_s: float) -> pulsar.Producer:
        """Raises TimeoutError, and what the client raised."""
        if not topic.producer.done():
            async with asyncio.timeout_at(by_s):
                await asyncio.shield(topic.producer)  # others wait for the same one
        return topic.producer.result()

    def _topic(self, model: str) -> _Topic:
        topic = self._topics.get(model)
        if topic is None:
            self._make_room()
            topic = self._topics[model] = _Topic(self._in_thread(self._create, model))
            topic.producer.add_done_callback(lambda made: self._forget(model, topic) if _failed(made) else None)
        self._topics.move_to_end(model)
        return topic

    def _create(self, model: str) -> pulsar.Producer:
        return self._client.create_producer(
            request_topic(model),
            batching_enabled=False,  # a batch would go whole to one node
            block_if_queue_full=False,  # it would block the event loop
            send_timeout_millis=int(self._timeout_s * 1000),
        )

    def _in_thread(self, function: Callable[..., Any], *arguments: str) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def _make_room(self) -> None:
        if len(self._topics) < self._max_producers:
            return
        idle = next((name for name, topic in self._topics.items() if not topic.in_flight), None)
        if idle is None:
            raise PublishFailed("too many models are asked for at once")
        self._forget(idle, self._topics[idle])

    def _forget(self, model: str, topic: _Topic) -> None:
        if self._topics.get(model) is topic:
            del self._topics[model]
            topic.producer.add_done_callback(self._close_producer)

    def _close_producer(self, made: asyncio.Future[pulsar.Producer]) -> None:
        if not _failed(made):
            self._in_thread(made.result().close)

    def _judge(self, model: str, topic: _Topic, result: str) -> None:
        if result == "Ok":
            self._report(False, "")
            return
        if result == "MessageTooBig":
            raise MessageTooBig(result)
        if result not in _PASSING:
            self._forget(model, topic)
        self._report(True, result)
        raise PublishFailed(result)

    def _report(self, away: bool, why: str) -> None:
        """Once a change, not once a request."""
        if away and not self._away:
            logger.warning("the queue takes no requests: {}", why)
        elif self._away and not away:
            logger.info("the queue takes requests again")
        self._away = away

    def close(self) -> None:
        """Ends the connection. May block for seconds where the queue is away: call it off the event loop."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()


async def _send(producer: pulsar.Producer, payload: bytes, by_s: float) -> str:
    """The result's name, `Ok` where the queue has it, `Timeout` where it said nothing by then (the loop's time)."""
    loop = asyncio.get_running_loop()
    sent: asyncio.Future[str] = loop.create_future()

    def tell(result: str) -> None:
        if not sent.done():
            sent.set_result(result)

    def done(result: object, _: object) -> None:
        settle_thread()
        try:
            loop.call_soon_threadsafe(tell, getattr(result, "name", str(result)))
        except RuntimeError:  # the loop has ended; an exception that left this callback would end the process
            return

    producer.send_async(payload, done)
    timer = loop.call_at(by_s, tell, "Timeout")  # a third of asyncio.timeout's cost
    try:
        return await sent
    finally:
        timer.cancel()


def _failed(made: asyncio.Future[pulsar.Producer]) -> bool:
    return made.cancelled() or made.exception() is not None
