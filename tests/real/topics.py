"""Publishing requests and reading records, as the systems around a node do, with the real Pulsar client."""

from __future__ import annotations

import json
import time
import uuid
from types import TracebackType
from typing import Any

import pulsar

from messaging.topics import dead_letter_topic, request_topic
from tests.real.records import checked

MOST_CHECKED = 300  # against the schema, which costs a millisecond each


class Topics:
    """The topics of one model. `records` are read from the moment this is made."""

    def __init__(self, url: str, model: str, records_topic: str, token: str = "") -> None:
        self.model = model
        authentication = pulsar.AuthenticationToken(token) if token else None
        self._client = pulsar.Client(url, authentication=authentication, logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
        self._records = self._client.subscribe(records_topic, f"test-{uuid.uuid4()}", initial_position=pulsar.InitialPosition.Latest)
        self._producers: dict[bool, pulsar.Producer] = {}
        self.read: list[dict[str, Any]] = []

    def publish(self, payload: bytes | dict[str, Any], *, batch: bool = False, properties: dict[str, str] | None = None) -> None:
        """In batches, as the existing service's client does, or by itself. Confirmed with `flush`."""
        self.open(batch=batch)
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self._producers[batch].send_async(data, lambda result, _: None, properties=properties)

    def open(self, *, batch: bool = False) -> None:
        """The producer, which takes some milliseconds."""
        if batch not in self._producers:
            options = {"batching_enabled": True, "batching_max_messages": 20, "batching_max_publish_delay_ms": 100} if batch else {}
            self._producers[batch] = self._client.create_producer(request_topic(self.model), **options)

    def flush(self) -> None:
        for producer in self._producers.values():
            producer.flush()

    def records_of(self, ids: set[str], within_s: float = 30.0) -> list[dict[str, Any]]:
        """All records read so far, once each of `ids` has one; fails after `within_s`, and where the schema allows one not."""
        deadline = time.monotonic() + within_s
        missing = ids - {record["request_id"] for record in self.read}
        while missing:
            try:
                message = self._records.receive(500)
            except pulsar.Timeout:
                assert time.monotonic() < deadline, f"no usage record for {len(missing)} of {len(ids)} requests"
                continue
            self._records.acknowledge(message)
            record = json.loads(message.data())
            missing.discard(record["request_id"])
            self.read.append(checked(record) if len(self.read) < MOST_CHECKED else record)
        return [record for record in self.read if record["request_id"] in ids]

    def dead_letter(self, within_s: float = 20.0) -> tuple[bytes, dict[str, str]]:
        """The oldest dead letter that was not read yet: payload and properties."""
        reader = self._client.subscribe(dead_letter_topic(self.model), "workernode", consumer_type=pulsar.ConsumerType.Shared)
        try:
            message = reader.receive(int(within_s * 1000))
            reader.acknowledge(message)
            return message.data(), message.properties()
        finally:
            reader.close()

    def __enter__(self) -> Topics:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.close()
