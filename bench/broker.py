"""How much the broker carries: `python -m bench.broker [--url pulsar://…] [--messages 50000]`.

Messages of 1 KB are published, received and acknowledged by Pulsar's own client in processes of their own, first one by
one, then in batches; then both again on top of a backlog. With --url the same runs against that Pulsar too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import threading
import time
import uuid
from contextlib import closing
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Event

import pulsar

from bench.client import quiet_client
from bench.watch import BROKER, Watch
from tests.real.embedded_broker import EmbeddedBroker

BODY = bytes(1024)
MAX_OUTSTANDING = 500
RECEIVE_TIMEOUT_MS = 30_000


@dataclass(frozen=True)
class Measured:
    """One run. CPU is the broker's, in seconds for each second of the run; None: of a broker elsewhere."""

    broker: str
    batched: bool
    backlog: int
    messages: int
    messages_per_s: float
    cores: float | None
    rss_mib: float | None


def main() -> None:
    asked = _parser().parse_args()
    embedded = EmbeddedBroker().start()
    try:
        for batched in (False, True):
            for backlog in (0, asked.backlog):
                _show(measure("embedded", embedded.url, asked.messages, batched, backlog, embedded.pid))
                if asked.url:
                    _show(measure(asked.url, asked.url, asked.messages, batched, backlog, asked.pid))
    finally:
        embedded.close()


def measure(name: str, url: str, messages: int, batched: bool, backlog: int, pid: int | None) -> Measured:
    """Publish, receive and acknowledge at once. `backlog`: messages that lie there before, in the same topic for another
    subscription."""
    topic = f"bench-{uuid.uuid4().hex[:8]}"
    if backlog:
        fill(url, topic, backlog)
    context = multiprocessing.get_context("spawn")
    subscribed, done = context.Event(), context.Event()
    consumer = context.Process(target=consume, args=(url, topic, messages, subscribed, done))
    consumer.start()
    subscribed.wait(30)
    seen, before_s = Watch({BROKER: pid} if pid else {}), time.monotonic()
    producer = context.Process(target=publish, args=(url, topic, messages, batched))
    producer.start()
    if not done.wait(600):
        raise TimeoutError("the consumer did not get everything")
    took_s, cpu_s, memory = time.monotonic() - before_s, seen.used_s(), seen.memory()
    producer.join()
    consumer.join()
    cores, rss_mib = (round(cpu_s[BROKER] / took_s, 2), memory[BROKER].rss) if pid else (None, None)
    return Measured(name, batched, backlog, messages, round(messages / took_s), cores, rss_mib)


def fill(url: str, topic: str, messages: int) -> None:
    """A backlog for a subscription that nobody reads."""
    with closing(quiet_client(url)) as client:
        client.subscribe(topic, "backlog", consumer_type=pulsar.ConsumerType.Shared).close()
    publish(url, topic, messages, batched=False)


def publish(url: str, topic: str, messages: int, batched: bool) -> None:
    """With a bounded number outstanding, as a gateway does."""
    outstanding = threading.Semaphore(MAX_OUTSTANDING)

    def confirmed(result: pulsar.Result, _: pulsar.MessageId) -> None:
        assert result == pulsar.Result.Ok, result
        outstanding.release()

    with closing(quiet_client(url)) as client:
        producer = client.create_producer(topic, batching_enabled=batched, batching_max_publish_delay_ms=5, block_if_queue_full=True)
        for _ in range(messages):
            outstanding.acquire()
            producer.send_async(BODY, confirmed)
        producer.flush()


def consume(url: str, topic: str, messages: int, subscribed: Event, done: Event) -> None:
    with closing(quiet_client(url)) as client:
        consumer = client.subscribe(topic, "bench", consumer_type=pulsar.ConsumerType.Shared)  # from what comes now
        subscribed.set()
        for _ in range(messages):
            consumer.acknowledge(consumer.receive(RECEIVE_TIMEOUT_MS))
        done.set()
        consumer.close()


def _show(measured: Measured) -> None:
    print(json.dumps(asdict(measured)), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench.broker", description=__doc__)
    parser.add_argument("--messages", type=int, default=30_000)
    parser.add_argument("--backlog", type=int, default=100_000)
    parser.add_argument("--url", help="a Pulsar to measure beside it")
    parser.add_argument("--pid", type=int, help="its process, for its CPU and memory")
    return parser


if __name__ == "__main__":
    main()
