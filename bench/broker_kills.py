"""Is anything lost when the broker is killed? `python -m bench.broker_kills [--times 20]`.

Under a load of publishing, receiving and acknowledging the broker gets SIGKILL and is started again on what it left.
Every message that was receipted has to be there, or to have been received before. What was acknowledged may come back
only where the broker had not stored it yet (server.FLUSH_EACH_S), as with Pulsar.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
import uuid
from contextlib import closing
from dataclasses import dataclass, field

import pulsar

from bench.client import quiet_client
from tests.real.embedded_broker import EmbeddedBroker

BODY = bytes(1024)
QUIET_MS = 1500
SETTLED_S = 0.5  # an acknowledgement older than this has left the client (100 ms) and is stored (100 ms)


@dataclass
class Load:
    """What the clients know. Bodies are numbers; `acked`: with the monotonic time of it."""

    receipted: set[int] = field(default_factory=set)
    received: set[int] = field(default_factory=set)
    acked: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """After one kill. `came_back`: acknowledged longer than SETTLED_S before it, and there again all the same."""

    receipted: int
    lost: int
    came_back: int
    recovery_s: float


def one_kill(broker: EmbeddedBroker, after_s: float) -> Found:
    """A fresh topic, a load, a kill, a start, and a count."""
    topic = f"kills-{uuid.uuid4().hex[:8]}"
    load, killed_s = _load_until_killed(broker, topic, after_s)
    started_s = time.monotonic()
    broker.start()
    recovery_s = time.monotonic() - started_s
    left = _left(broker, topic)
    settled = {number for number, at_s in load.acked.items() if at_s < killed_s - SETTLED_S}
    return Found(len(load.receipted), len(load.receipted - left - load.received), len(left & settled), round(recovery_s, 3))


def _load_until_killed(broker: EmbeddedBroker, topic: str, after_s: float) -> tuple[Load, float]:
    load, stop = Load(), threading.Event()
    with closing(quiet_client(broker.url)) as client:
        consumer = client.subscribe(topic, "s", consumer_type=pulsar.ConsumerType.Shared, receiver_queue_size=100)
        producer = client.create_producer(topic, send_timeout_millis=1000, max_pending_messages=500, block_if_queue_full=True)
        threads = [
            threading.Thread(target=_publish, args=(producer, load, stop), daemon=True),
            threading.Thread(target=_receive, args=(consumer, load, stop), daemon=True),
        ]
        for thread in threads:
            thread.start()
        time.sleep(after_s)
        broker.kill()
        killed_s = time.monotonic()
        stop.set()
        for thread in threads:
            thread.join(10)
    return load, killed_s


def _publish(producer: pulsar.Producer, load: Load, stop: threading.Event) -> None:
    def confirmed(number: int, result: pulsar.Result) -> None:
        if result == pulsar.Result.Ok:
            load.receipted.add(number)

    number = 0
    while not stop.is_set():
        producer.send_async(str(number).encode() + BODY, lambda result, _, number=number: confirmed(number, result))
        number += 1


def _receive(consumer: pulsar.Consumer, load: Load, stop: threading.Event) -> None:
    """Acknowledges two of three, so that much is left in pieces."""
    while not stop.is_set():
        try:
            message = consumer.receive(200)
        except pulsar.Timeout:
            continue
        number = _number(message)
        if number % 3:
            consumer.acknowledge(message)
            load.received.add(number)
            load.acked[number] = time.monotonic()


def _left(broker: EmbeddedBroker, topic: str) -> set[int]:
    found: set[int] = set()
    with closing(quiet_client(broker.url)) as client:
        consumer = client.subscribe(topic, "s", consumer_type=pulsar.ConsumerType.Shared)
        while True:
            try:
                message = consumer.receive(QUIET_MS)
            except pulsar.Timeout:
                return found
            found.add(_number(message))
            consumer.acknowledge(message)


def _number(message: pulsar.Message) -> int:
    return int(message.data().rstrip(b"\0"))


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.broker_kills", description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    with closing(EmbeddedBroker()) as broker:
        broker.start()
        for _ in range(parser.parse_args().times):
            print(one_kill(broker, random.uniform(0.3, 2.0)), flush=True)


if __name__ == "__main__":
    main()
