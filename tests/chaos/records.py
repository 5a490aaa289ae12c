"""The usage records of a run, read at its end; a subscription of its own has kept them since its beginning."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pulsar

from tests.chaos.checker import Records

SUBSCRIPTION = "chaos"


class RecordKeeper:
    """`subscribe` before the first record. Nothing is acknowledged, so each `read` begins with the oldest."""

    def __init__(self, pulsar_url: str, topic: str, log: Path) -> None:
        self._url, self._topic, self._log = pulsar_url, topic, log

    def subscribe(self) -> None:
        client = self._client()
        client.subscribe(self._topic, SUBSCRIPTION, initial_position=pulsar.InitialPosition.Earliest)
        client.close()

    def read(self, enough: Callable[[Records], bool], within_s: float) -> Records:
        """All records, once they are `enough` or the time is over, and no more come."""
        client = self._client()
        found: Records = defaultdict(list)
        deadline_s = time.monotonic() + within_s
        try:
            consumer = client.subscribe(self._topic, SUBSCRIPTION, initial_position=pulsar.InitialPosition.Earliest)
            while time.monotonic() < deadline_s:
                try:
                    message = consumer.receive(1000)
                except pulsar.Timeout:
                    if enough(found):
                        break
                    continue
                record = json.loads(message.data())
                found[record["client"].get("user-agent", "")].append(record)
        finally:
            client.close()
        return found

    def _client(self) -> Any:
        return pulsar.Client(self._url, logger=pulsar.FileLogger(pulsar.LoggerLevel.Error, str(self._log)))
