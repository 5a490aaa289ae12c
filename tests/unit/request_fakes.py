"""A clock and a queue in place of the real ones, for the tests of what becomes of a request."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

from config import load
from errors import error_object
from ipc.messages import Refuse, Task
from messaging.line import Key, Received
from messaging.publisher import Publish
from supervision.journal import Journal
from supervision.ledger import Entry, Line
from supervision.requests import Job, Requests

TOPIC, RECORDS, DEAD = "model-m", "res-topic", "model-m-model-m-subscription-DLQ"
ERROR = error_object("broke", "server_error", "c")


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def time(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s


class Queue:
    """Confirms when it is told to; keeps what was published and what was acknowledged."""

    def __init__(self, clock: Clock, journal: Journal | None = None, **variables: str) -> None:
        self.clock = clock
        self._settings = load({"PULSAR_URL": "pulsar://h", "NODE_TYPE": "remote", "API_URL": "http://h", "MODEL_NAME": "m", **variables})
        self.requests = self.new_node(journal)
        self.unconfirmed: list[tuple[Publish, Callable[[], None]]] = []
        self.confirmed: list[Publish] = []
        self.acknowledged: list[Received] = []
        self._last_entry = 0

    def new_node(self, journal: Journal | None = None) -> Requests:
        return Requests(self._settings, self._publish, self._acknowledge, random.Random(1), journal)

    def _publish(self, publish: Publish, confirmed: Callable[[], None]) -> None:
        self.unconfirmed.append((publish, confirmed))

    def _acknowledge(self, received: Received) -> None:
        self.acknowledged.append(received)

    def message(
        self, request_id: str = "r", *, stream: bool = False, properties: dict[str, str] | None = None, payload: bytes | None = None
    ) -> Received:
        body = {"request_id": request_id, "stream": stream, "endpoint": "http://h/res", "data": {"model": "m"}}
        return self.of_payload(msgspec.json.encode(body) if payload is None else payload, properties)

    def of_payload(self, payload: bytes, properties: dict[str, str] | None = None) -> Received:
        self._last_entry += 1
        return Received((0, 1, self._last_entry, -1), None, payload, properties or {}, int(self.clock.now_s * 1000))

    def again(self, publish: Publish) -> Received:
        return self.of_payload(publish.payload, publish.properties)

    def arrive(self, **given: Any) -> Received:
        received = self.message(**given)
        self.requests.arrive(received)
        return received

    def next_for_child(self) -> Entry[Job] | None:
        """Of all lines, as the node takes them."""
        return next((entry for line in (*Line, Line.REFUSAL) if (entry := self.requests.next_for_child(line))), None)

    def board(self, child: int = 1) -> Task | Refuse:
        entry = self.next_for_child()
        assert entry is not None
        return self.requests.board(entry, child)

    def confirm(self) -> list[Publish]:
        """All that is open; returns it."""
        pending, self.unconfirmed = self.unconfirmed, []
        for publish, confirmed in pending:
            self.confirmed.append(publish)
            confirmed()
        return [publish for publish, _ in pending]

    def keys(self) -> list[Key]:
        return [received.key for received in self.acknowledged]


def record_of(publish: Publish) -> dict[str, Any]:
    found = msgspec.json.decode(publish.payload)
    assert isinstance(found, dict)
    return found
