"""The brokers themselves: what other tests rely on."""

from __future__ import annotations

import time
import uuid
from urllib.parse import urlsplit

import pulsar as pulsar_client
import pytest

from messaging.admin import PulsarAdmin
from tests.real.brokers import Broker
from tests.real.processes import wait_until
from tests.real.pulsar_server import PulsarServer


def _publish(server: Broker, topic: str, token: str | None = None) -> None:
    client = pulsar_client.Client(
        server.url,
        authentication=pulsar_client.AuthenticationToken(token) if token else None,
        operation_timeout_seconds=10,
        logger=pulsar_client.ConsoleLogger(pulsar_client.LoggerLevel.Error),
    )
    try:
        client.create_producer(topic).send(b"hello")
    finally:
        client.close()


def _subscribe(server: Broker, topic: str) -> None:
    client = pulsar_client.Client(server.url, logger=pulsar_client.ConsoleLogger(pulsar_client.LoggerLevel.Error))
    client.subscribe(topic, "s", initial_position=pulsar_client.InitialPosition.Earliest)
    client.close()


def _receive(server: Broker, topic: str) -> bytes:
    client = pulsar_client.Client(server.url, logger=pulsar_client.ConsoleLogger(pulsar_client.LoggerLevel.Error))
    try:
        consumer = client.subscribe(topic, "s", initial_position=pulsar_client.InitialPosition.Earliest)
        return bytes(consumer.receive(timeout_millis=20000).data())
    finally:
        client.close()


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_messages_outlive_a_restart_on_the_same_ports(own_pulsar: Broker, end: str) -> None:
    topic = f"restart-{uuid.uuid4().hex}"
    _subscribe(own_pulsar, topic)
    _publish(own_pulsar, topic)
    getattr(own_pulsar, end)()
    assert not own_pulsar.alive
    started = time.monotonic()
    own_pulsar.start()
    print(f"restarted in {time.monotonic() - started:.1f} s")
    assert _receive(own_pulsar, topic) == b"hello"


def test_tokens_are_asked_for(token_pulsar: Broker) -> None:
    assert urlsplit(token_pulsar.url).port != 6650
    _publish(token_pulsar, "with-token", token_pulsar.token("admin"))
    with pytest.raises(pulsar_client.PulsarException):
        _publish(token_pulsar, "without-token", token_pulsar.token("admin")[:-2] + "xx")


@pytest.mark.parametrize("partitions", [0, 2])
def test_a_backlog_is_told_over_all_partitions(pulsar: Broker, partitions: int) -> None:
    topic = f"backlog-{uuid.uuid4().hex[:8]}"
    if partitions:
        if not isinstance(pulsar, PulsarServer):
            pytest.skip("the embedded broker has no partitioned topics")
        pulsar.admin("PUT", f"persistent/public/default/{topic}/partitions", partitions)
    _subscribe(pulsar, topic)
    for _ in range(3):
        _publish(pulsar, topic)
    admin = PulsarAdmin(pulsar.admin_url)
    wait_until(lambda: admin.backlog(topic, "s") == 3, within_s=30, what="a backlog of 3")
    assert admin.backlog(topic, "another") == admin.backlog("nowhere", "s") == 0
