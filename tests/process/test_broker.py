"""The embedded broker as Pulsar's own client sees it, and as nobody's client should."""

from __future__ import annotations

import json
import os
import queue
import random
import re
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import psutil
import pulsar
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.broker_kills import one_kill
from broker.pulsar_pb2 import (
    BaseCommand,
    CommandFlow,
    CommandGetSchema,
    CommandLookupTopic,
    CommandPing,
    CommandProducer,
    CommandSend,
    CommandSubscribe,
    MessageMetadata,
    ServerError,
)
from broker.wire import checksummed, encode
from messaging.client import settle_thread
from tests.real.embedded_broker import EmbeddedBroker, RawClient
from tests.real.processes import start_bound, wait_until

SHARED, EXCLUSIVE = pulsar.ConsumerType.Shared, pulsar.ConsumerType.Exclusive
EARLIEST = pulsar.InitialPosition.Earliest


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with closing(EmbeddedBroker()) as broker:
        yield broker.start()


@pytest.fixture
def own_broker() -> Iterator[EmbeddedBroker]:
    """One that a test may kill."""
    with closing(EmbeddedBroker()) as broker:
        yield broker.start()


def open_client(broker: EmbeddedBroker, token: str = "") -> pulsar.Client:
    return pulsar.Client(
        broker.url,
        authentication=pulsar.AuthenticationToken(token) if token else None,
        operation_timeout_seconds=5,
        logger=pulsar.FileLogger(pulsar.LoggerLevel.Error, os.devnull),
    )


@pytest.fixture
def client(broker: EmbeddedBroker) -> Iterator[pulsar.Client]:
    with closing(open_client(broker)) as client:
        yield client


def test_a_thread_of_the_clients_keeps_its_state_once_it_is_settled(client: pulsar.Client) -> None:
    producer, here = client.create_producer(f"settled-{uuid.uuid4().hex[:8]}", batching_enabled=False), threading.local()

    def calls_before(settles: bool) -> int:
        """By the thread that calls back, as far as it remembers."""
        found: queue.SimpleQueue[int] = queue.SimpleQueue()

        def called(result: object, _: object) -> None:
            if settles:
                settle_thread()
            here.calls = getattr(here, "calls", -1) + 1
            found.put(here.calls)

        producer.send_async(b"x", called)
        return found.get(timeout=10)

    assert [calls_before(settles=False) for _ in range(3)] == [0, 0, 0], "else there is no need to settle any more"
    assert [calls_before(settles=True) for _ in range(3)] == [0, 1, 2]


@pytest.fixture
def topic() -> str:
    return f"topic-{uuid.uuid4().hex[:10]}"


def received(consumer: pulsar.Consumer, count: int, *, ack: bool = True) -> list[pulsar.Message]:
    """`count` messages, and no more within a moment."""
    found = [consumer.receive(5000) for _ in range(count)]
    with pytest.raises(pulsar.Timeout):
        consumer.receive(150)
    for message in found if ack else []:
        consumer.acknowledge(message)
    return found


def bodies(messages: list[pulsar.Message]) -> list[str]:
    return [message.data().decode() for message in messages]


def stats(broker: EmbeddedBroker, topic: str, subscription: str = "s") -> dict[str, object]:
    found: dict[str, object] = broker.admin("GET", f"persistent/public/default/{topic}/stats")["subscriptions"][subscription]
    return found


def wait_backlog(broker: EmbeddedBroker, topic: str, count: int) -> None:
    wait_until(lambda: stats(broker, topic)["msgBacklog"] == count, within_s=5, what=f"backlog of {count}")


# ---- publishing and receiving ----


def test_messages_come_in_order_with_all_that_belongs_to_them(client: pulsar.Client, topic: str) -> None:
    consumer = client.subscribe(topic, "s", consumer_type=SHARED)
    producer = client.create_producer(topic)
    ids = [producer.send(f"m{n}".encode(), properties={"n": str(n)}, partition_key="k", event_timestamp=n + 1) for n in range(5)]
    found = received(consumer, 5)
    assert bodies(found) == [f"m{n}" for n in range(5)]
    assert [message.message_id() for message in found] == ids
    assert [(m.properties(), m.partition_key(), m.event_timestamp()) for m in found] == [({"n": str(n)}, "k", n + 1) for n in range(5)]


@pytest.mark.parametrize("compression", ["LZ4", "ZLib", "ZSTD", "SNAPPY"])
def test_batches_and_compression_are_carried(client: pulsar.Client, topic: str, compression: str) -> None:
    consumer = client.subscribe(topic, "s", consumer_type=SHARED)
    kind = getattr(pulsar.CompressionType, compression)
    producer = client.create_producer(topic, batching_enabled=True, batching_max_publish_delay_ms=50, compression_type=kind)
    for n in range(20):
        producer.send_async(str(n).encode() * 100, lambda *_: None)
    producer.flush()
    assert bodies(received(consumer, 20)) == [str(n) * 100 for n in range(20)]


def test_a_message_of_the_largest_size_passes_and_a_larger_one_does_not(client: pulsar.Client, topic: str) -> None:
    consumer = client.subscribe(topic, "s", consumer_type=SHARED)
    producer = client.create_producer(topic)
    body = random.randbytes(5 * 1024 * 1024 - 200)  # the metadata counts too
    producer.send(body)
    with pytest.raises(pulsar.MessageTooBig):
        producer.send(body + bytes(200))
    assert received(consumer, 1)[0].data() == body


def test_names_are_generated_and_one_that_is_taken_is_refused(client: pulsar.Client, topic: str) -> None:
    names = {client.create_producer(topic).producer_name() for _ in range(3)}
    assert len(names) == 3
    named = client.create_producer(topic, producer_name="me")
    with pytest.raises(pulsar.ProducerBusy):
        client.create_producer(topic, producer_name="me")
    named.close()
    client.create_producer(topic, producer_name="me")


def test_several_consumers_share_fairly(client: pulsar.Client, topic: str) -> None:
    consumers = [client.subscribe(topic, "s", consumer_type=SHARED, receiver_queue_size=100) for _ in range(3)]
    producer = client.create_producer(topic)
    for n in range(90):
        producer.send_async(str(n).encode(), lambda *_: None)
    producer.flush()
    assert [len(received(consumer, 30)) for consumer in consumers] == [30, 30, 30]


def test_a_small_queue_hoards_nothing(client: pulsar.Client, broker: EmbeddedBroker, topic: str) -> None:
    consumer = client.subscribe(topic, "s", consumer_type=SHARED, receiver_queue_size=1)
    producer = client.create_producer(topic)
    for n in range(10):
        producer.send(str(n).encode())
    consumer.receive(2000)
    wait_until(lambda: stats(broker, topic)["unackedMessages"] == 2, within_s=5, what="one in hand and one at hand")


# ---- subscriptions ----


def test_earliest_and_latest(client: pulsar.Client, topic: str) -> None:
    producer = client.create_producer(topic)
    producer.send(b"before")
    earliest = client.subscribe(topic, "earliest", consumer_type=SHARED, initial_position=EARLIEST)
    latest = client.subscribe(topic, "latest", consumer_type=SHARED)
    producer.send(b"after")
    assert bodies(received(earliest, 2)) == ["before", "after"]
    assert bodies(received(latest, 1)) == ["after"]


def test_an_exclusive_one_is_alone_and_goes_on_where_it_was(client: pulsar.Client, topic: str) -> None:
    consumer = client.subscribe(topic, "s", consumer_type=EXCLUSIVE)
    for kind in (EXCLUSIVE, SHARED):
        with pytest.raises(pulsar.ConsumerBusy):
            client.subscribe(topic, "s", consumer_type=kind)
    producer = client.create_producer(topic)
    for n in range(6):
        producer.send(str(n).encode())
    consumer.acknowledge_cumulative(received(consumer, 6, ack=False)[2])
    consumer.close()
    again = client.subscribe(topic, "s", consumer_type=EXCLUSIVE)
    assert bodies(received(again, 3)) == ["3", "4", "5"]


@pytest.mark.parametrize("kind", ["Failover", "KeyShared"])
def test_other_kinds_are_refused(client: pulsar.Client, topic: str, kind: str) -> None:
    with pytest.raises(pulsar.NotAllowedError):
        client.subscribe(topic, "s", consumer_type=getattr(pulsar.ConsumerType, kind))


def test_a_nak_brings_it_back_with_its_count(client: pulsar.Client, topic: str) -> None:
    consumer = client.subscribe(topic, "s", consumer_type=SHARED, negative_ack_redelivery_delay_ms=50)
    client.create_producer(topic).send(b"m")
    for count in range(3):
        message = consumer.receive(5000)
        assert message.redelivery_count() == count
        consumer.negative_acknowledge(message)
    consumer.acknowledge(consumer.receive(5000))


def test_what_a_closed_or_dead_consumer_held_goes_to_others_at_once(broker: EmbeddedBroker, client: pulsar.Client, topic: str) -> None:
    leaving = open_client(broker)
    holder = leaving.subscribe(topic, "s", consumer_type=SHARED, receiver_queue_size=100)
    producer = client.create_producer(topic)
    for n in range(4):
        producer.send(str(n).encode())
    assert len(received(holder, 4, ack=False)) == 4
    other = client.subscribe(topic, "s", consumer_type=SHARED)
    leaving.close()
    found = received(other, 4)
    assert bodies(found) == ["0", "1", "2", "3"]
    assert {message.redelivery_count() for message in found} == {0}


def test_a_delay_is_kept_and_holds_up_nothing(client: pulsar.Client, topic: str) -> None:
    consumer = client.subscribe(topic, "s", consumer_type=SHARED)
    producer = client.create_producer(topic)
    producer.send(b"late", deliver_after=timedelta(seconds=2))
    sent_s = time.monotonic()
    producer.send(b"now")
    assert bodies([consumer.receive(1000)]) == ["now"]
    assert bodies([consumer.receive(5000)]) == ["late"]
    assert 1.9 < time.monotonic() - sent_s < 3.0


def test_a_reader_reads_from_where_it_says(client: pulsar.Client, topic: str) -> None:
    client.subscribe(topic, "keeps", consumer_type=SHARED).close()
    producer = client.create_producer(topic)
    ids = [producer.send(str(n).encode()) for n in range(5)]

    def read(start: pulsar.MessageId, *, inclusive: bool = False) -> list[str]:
        with closing(client.create_reader(topic, start, start_message_id_inclusive=inclusive)) as reader:
            found = []
            while reader.has_message_available():
                found.append(reader.read_next(2000).data().decode())
            return found

    assert read(pulsar.MessageId.earliest) == ["0", "1", "2", "3", "4"]
    assert read(pulsar.MessageId.latest) == []
    assert read(pulsar.MessageId.latest, inclusive=True) == ["4"]
    assert read(ids[2]) == ["3", "4"]
    assert read(ids[2], inclusive=True) == ["2", "3", "4"]


def test_seeking_by_id_and_by_time(client: pulsar.Client, topic: str) -> None:
    consumer = client.subscribe(topic, "s", consumer_type=EXCLUSIVE)
    producer = client.create_producer(topic)
    for n in range(4):
        producer.send(str(n).encode())
        time.sleep(0.01)
    found = received(consumer, 4, ack=False)
    consumer.seek(found[1].message_id())
    assert bodies(received(consumer, 2, ack=False)) == ["2", "3"], "the client skips what it has sought"
    consumer.seek(found[1].publish_timestamp())
    assert bodies(received(consumer, 3, ack=False)) == ["1", "2", "3"]


def test_batch_index_acknowledgement(client: pulsar.Client, topic: str) -> None:
    def subscribe() -> pulsar.Consumer:
        return client.subscribe(topic, "s", consumer_type=SHARED, batch_index_ack_enabled=True)

    consumer = subscribe()
    producer = client.create_producer(topic, batching_enabled=True, batching_max_publish_delay_ms=50)
    for n in range(70):  # more than one word of bits
        producer.send_async(str(n).encode(), lambda *_: None)
    producer.flush()
    for message in received(consumer, 70, ack=False)[:68]:
        consumer.acknowledge(message)
    time.sleep(0.2)  # the client sends acknowledgements each 100 ms
    consumer.close()
    assert bodies(received(subscribe(), 2)) == ["68", "69"]


def test_unsubscribing_ends_the_subscription(client: pulsar.Client, broker: EmbeddedBroker, topic: str) -> None:
    first, second = (client.subscribe(topic, "s", consumer_type=SHARED) for _ in range(2))
    with pytest.raises(pulsar.BrokerMetadataError):
        first.unsubscribe()
    second.close()
    first.unsubscribe()
    assert broker.admin("GET", f"persistent/public/default/{topic}/subscriptions") == []


def test_several_topics_and_a_pattern(client: pulsar.Client, topic: str) -> None:
    for n in range(3):
        client.create_producer(f"{topic}-{n}").send(str(n).encode())
    several = client.subscribe([f"{topic}-0", f"{topic}-1"], "several", consumer_type=SHARED, initial_position=EARLIEST)
    assert sorted(bodies(received(several, 2))) == ["0", "1"]
    name = re.compile(f"persistent://public/default/{topic}-.")
    pattern = client.subscribe(name, "pattern", consumer_type=SHARED, initial_position=EARLIEST)
    assert sorted(bodies(received(pattern, 3))) == ["0", "1", "2"]


@pytest.mark.parametrize("name", ["persistent://other/default/t", "persistent://public/other/t"])
def test_other_namespaces_are_refused(client: pulsar.Client, name: str) -> None:
    with pytest.raises(pulsar.TopicNotFound):
        client.create_producer(name)


# ---- life ----


def test_clients_survive_a_restart(own_broker: EmbeddedBroker, topic: str) -> None:
    with closing(open_client(own_broker)) as client:
        consumer = client.subscribe(topic, "s", consumer_type=SHARED)
        producer = client.create_producer(topic)
        name = producer.producer_name()
        producer.send(b"before")
        for end in (own_broker.kill, own_broker.stop):
            end()
            own_broker.start()
            producer.send(b"after")
        assert producer.producer_name() == name
        assert client.create_producer(topic).producer_name() != name
        found = {message.data() for message in [consumer.receive(10_000) for _ in range(3)]}
        assert found == {b"before", b"after"}


def test_nothing_that_was_receipted_is_lost_by_a_kill(own_broker: EmbeddedBroker) -> None:
    """bench/broker_kills.py does it more often."""
    for _ in range(3):
        found = one_kill(own_broker, random.uniform(0.3, 1.0))
        assert found.receipted > 50 and (found.lost, found.came_back) == (0, 0), found


def everything(broker: EmbeddedBroker, topic: str) -> set[str]:
    """The bodies that wait in the subscription."""
    found: set[str] = set()
    with closing(open_client(broker)) as client:
        consumer = client.subscribe(topic, "s", consumer_type=SHARED)
        while True:
            try:
                message = consumer.receive(1000)
            except pulsar.Timeout:
                return found
            found.add(message.data().rstrip(b"\0").decode())
            consumer.acknowledge(message)


def test_acknowledged_messages_stay_away_after_a_kill(own_broker: EmbeddedBroker, topic: str) -> None:
    with closing(open_client(own_broker)) as client:
        consumer = client.subscribe(topic, "s", consumer_type=SHARED)
        producer = client.create_producer(topic)
        for n in range(10):
            producer.send(str(n).encode())
        for message in received(consumer, 10, ack=False):
            if int(message.data()) % 2:
                consumer.acknowledge(message)
        wait_backlog(own_broker, topic, 5)
        time.sleep(0.3)  # acknowledgements are stored each 100 ms
        own_broker.kill()
    own_broker.start()
    assert everything(own_broker, topic) == {"0", "2", "4", "6", "8"}


def test_a_token_opens_it(topic: str) -> None:
    with closing(EmbeddedBroker(token_authentication=True)) as broker:
        broker.start()
        with closing(open_client(broker, broker.token("node"))) as client:
            client.create_producer(topic).send(b"m")
        for token in ("", "wrong"):
            with closing(open_client(broker, token)) as client, pytest.raises(pulsar.PulsarException):
                client.create_producer(topic)
            raw = RawClient(broker, greet=False)
            connect = encode(BaseCommand(type=BaseCommand.CONNECT, connect={"client_version": "x", "auth_data": token.encode()}))
            raw.socket.sendall(connect)
            assert raw.answer().error.error == ServerError.AuthenticationError
            assert raw.closed()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            _get(f"{broker.admin_url}/admin/v2/clusters")
        assert broker.token("x") not in broker.log_end()


def _get(url: str, method: str = "GET") -> object:
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as answer:
        return json.loads(answer.read())


def test_admin_answers_as_pulsar_does(broker: EmbeddedBroker, client: pulsar.Client, topic: str) -> None:
    assert broker.admin("GET", "clusters") == ["standalone"]
    assert broker.admin("GET", "namespaces/public") == ["public/default"]
    assert broker.admin("GET", "persistent/public/default/partitioned") == []
    client.subscribe(topic, "s", consumer_type=SHARED).close()
    client.create_producer(topic).send(b"m")
    assert f"persistent://public/default/{topic}" in broker.admin("GET", "persistent/public/default")
    assert broker.admin("GET", f"persistent/public/default/{topic}/subscriptions") == ["s"]
    found = broker.admin("GET", f"persistent/public/default/{topic}/stats")
    assert (found["msgInCounter"], found["subscriptions"]["s"]["msgBacklog"]) == (1, 1)
    with pytest.raises(urllib.error.HTTPError) as unknown:
        broker.admin("GET", "persistent/public/default/nothing/stats")
    assert unknown.value.code == 404
    assert json.loads(unknown.value.read())["reason"] == "Topic persistent://public/default/nothing not found"
    with pytest.raises(urllib.error.HTTPError, match="405"):
        broker.admin("DELETE", f"persistent/public/default/{topic}")


def test_what_cannot_be_had_is_said_and_ends_it(broker: EmbeddedBroker, tmp_path: Path) -> None:
    def said(port: str, data: Path | str) -> str:
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        command = [sys.executable, "-m", "broker", "--port", port, "--admin-port", "0", "--data", str(data)]
        assert start_bound(command, log=log).wait(20) == 78
        return log.read_text()

    taken = broker.url.rsplit(":", 1)[1]
    assert f"port {taken} of 127.0.0.1 cannot be had" in said(taken, tmp_path / "d")
    assert "in use by another broker" in said("0", broker.data)
    assert "cannot be used" in said("0", "/proc/nothing")


def test_sigterm_ends_it_cleanly(own_broker: EmbeddedBroker, topic: str) -> None:
    with closing(open_client(own_broker)) as client:
        client.create_producer(topic).send(b"m")
        assert own_broker.stop() == 0
        assert "Traceback" not in own_broker.log_end(200)


def test_a_free_port_is_said(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-m", "broker", "--port", "0", "--admin-port", "0", "--data", str(tmp_path / "d")]
    process = start_bound(command, log=log)
    try:
        wait_until(lambda: "broker on pulsar://127.0.0.1:" in log.read_text(), within_s=10, what="address in the log")
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


# ---- wrong frames, and peers that behave badly ----

PRODUCER = BaseCommand(type=BaseCommand.PRODUCER, producer=CommandProducer(topic="raw", producer_id=1, request_id=1))
BODY = checksummed(MessageMetadata(publish_time=1).SerializeToString(), b"payload")


def sending(sequence_id: int) -> BaseCommand:
    return BaseCommand(type=BaseCommand.SEND, send=CommandSend(producer_id=1, sequence_id=sequence_id))


@pytest.mark.parametrize(
    "wrong",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x00\x00\x04\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff\x00\x00\x00\x01",
        encode(BaseCommand(type=BaseCommand.CONNECT, connect={"client_version": "again"})),
        encode(BaseCommand(type=BaseCommand.SEND, send=CommandSend(producer_id=77, sequence_id=1)), BODY),
        encode(BaseCommand(type=BaseCommand.CONNECTED, connected={"server_version": "x"})),
        b"\x00\x00\x00\x06\x00\x00\x00\x02\x08\x06",
    ],
)
def test_a_wrong_frame_closes_its_connection_and_no_other(broker: EmbeddedBroker, wrong: bytes) -> None:
    bystander, culprit = RawClient(broker), RawClient(broker)
    culprit.socket.sendall(wrong)
    assert culprit.closed()
    assert bystander.settle() == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=5), st.booleans())
def test_fuzz_never_harms_others(broker: EmbeddedBroker, pieces: list[bytes], framed: bool) -> None:
    bystander, culprit = RawClient(broker), RawClient(broker)
    try:
        for piece in pieces:
            head = (len(piece) + 4).to_bytes(4, "big") + len(piece).to_bytes(4, "big") if framed else b""
            culprit.socket.sendall(head + piece)
    except ConnectionError:
        pass
    assert bystander.settle() == []
    culprit.close()
    bystander.close()


def test_a_changed_message_is_refused_alone(broker: EmbeddedBroker) -> None:
    client = RawClient(broker)
    assert client.ask(PRODUCER).type == BaseCommand.PRODUCER_SUCCESS
    assert client.ask(sending(1), BODY[:-1] + b"X").send_error.error == ServerError.ChecksumError
    assert client.ask(sending(2), BODY).send_receipt.sequence_id == 2
    client.close()


@pytest.mark.parametrize("name", ["new_txn", "watch_topic_list", "tc_client_connect_request", "get_or_create_schema"])
def test_what_it_does_not_do_is_refused_by_name(broker: EmbeddedBroker, name: str) -> None:
    client = RawClient(broker)
    command = BaseCommand(type=name.upper())
    getattr(command, name).request_id = 7
    answer = client.ask(command)
    assert (answer.error.request_id, answer.error.error) == (7, ServerError.NotAllowedError)
    schema = client.ask(BaseCommand(type=BaseCommand.GET_SCHEMA, get_schema=CommandGetSchema(request_id=8)))
    assert schema.get_schema_response.error_code == ServerError.TopicNotFound
    client.close()


@pytest.mark.parametrize("name", ["non-persistent://public/default/t", "persistent://public/default/", "persistent://public/default/a/b"])
def test_topics_that_cannot_be_are_refused(broker: EmbeddedBroker, name: str) -> None:
    client = RawClient(broker)
    answer = client.ask(BaseCommand(type=BaseCommand.LOOKUP, lookup=CommandLookupTopic(topic=name, request_id=1)))
    assert answer.lookup_response.error in (ServerError.NotAllowedError, ServerError.InvalidTopicName)
    client.close()


def test_a_consumer_that_does_not_read_stops_getting_and_harms_nobody(own_broker: EmbeddedBroker, topic: str) -> None:
    full = f"persistent://public/default/{topic}"
    stuck = RawClient(own_broker)
    subscribe = CommandSubscribe(topic=full, subscription="s", sub_type=CommandSubscribe.Shared, consumer_id=1, request_id=1)
    assert stuck.ask(BaseCommand(type=BaseCommand.SUBSCRIBE, subscribe=subscribe)).type == BaseCommand.SUCCESS
    stuck.send(BaseCommand(type=BaseCommand.FLOW, flow=CommandFlow(consumer_id=1, message_permits=1_000_000)))
    before_bytes = psutil.Process(own_broker.pid).memory_info().rss
    with closing(open_client(own_broker)) as client:
        producer = client.create_producer(topic)
        for _ in range(100):
            producer.send(random.randbytes(1_000_000))
        assert stats(own_broker, topic)["msgBacklog"] == 100
        assert int(str(stats(own_broker, topic)["unackedMessages"])) < 30, "what fits into the buffers"
        assert psutil.Process(own_broker.pid).memory_info().rss - before_bytes < 40_000_000
        other = client.subscribe(topic, "s", consumer_type=SHARED, receiver_queue_size=2)
        stuck.close()
        for _ in range(100):
            other.acknowledge(other.receive(5000))


def test_a_peer_that_asks_without_reading_is_not_read_from(own_broker: EmbeddedBroker) -> None:
    stuck = RawClient(own_broker)
    stuck.socket.settimeout(2)
    pings = encode(BaseCommand(type=BaseCommand.PING, ping=CommandPing())) * 10_000
    before_bytes = psutil.Process(own_broker.pid).memory_info().rss
    with pytest.raises(TimeoutError):
        for _ in range(1000):
            stuck.socket.sendall(pings)
    assert psutil.Process(own_broker.pid).memory_info().rss - before_bytes < 30_000_000
    assert RawClient(own_broker).settle() == []


def test_a_stopped_process_comes_back(own_broker: EmbeddedBroker, topic: str) -> None:
    """SIGSTOP is what a suspended laptop looks like."""
    with closing(open_client(own_broker)) as client:
        producer = client.create_producer(topic)
        producer.send(b"before")
        os.kill(own_broker.pid, signal.SIGSTOP)
        time.sleep(1)
        os.kill(own_broker.pid, signal.SIGCONT)
        producer.send(b"after")
