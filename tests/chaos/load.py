"""A steady load from a thread of its own: through the gateways by HTTP, and straight to the topic, singly and in batches."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pulsar

from messaging.topics import request_topic
from tests.chaos import client
from tests.chaos.ledger import TOKENS, Asked, Ledger
from tests.chaos.service import Service

MOST_OPEN = 300  # while the broker is away nothing is answered: more would only make the way back longer
BATCH = 10
BATCHED = {"batching_enabled": True, "batching_max_messages": 20, "batching_max_publish_delay_ms": 100}


class Load:
    """`rate`: requests a second. `start`, then `stop`; requests that are open then are still waited for."""

    def __init__(
        self, ledger: Ledger, service: Service, pulsar_url: str, model: str, ports: list[int], *, rate: float, seed: int, log: Path
    ) -> None:
        self._ledger, self._service, self._model, self._ports = ledger, service, model, ports
        self._rate, self._chance = rate, random.Random(f"{seed} load")
        self._client = pulsar.Client(pulsar_url, logger=pulsar.FileLogger(pulsar.LoggerLevel.Error, str(log)))
        self._producers: dict[bool, Any] = {}
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._producers = {batch: self._producer(batch) for batch in (False, True)}
        self._wanted.set()
        self._thread.start()

    def stop(self) -> None:
        """Nothing new from now on."""
        self._wanted.clear()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        closing = threading.Thread(target=self._client.close, daemon=True)  # it may hang where the broker is away
        closing.start()
        closing.join(5)

    def burst(self, count: int, behaviour: str) -> list[Asked]:
        """So many streams at once, through the gateways."""
        made = [(port % len(self._ports), self._ledger.add("gateway", True, gateway=port % len(self._ports))) for port in range(count)]
        for index, asked in made:
            self._loop.call_soon_threadsafe(self._ask_gateway, asked, index, self._body(behaviour, stream=True))
        return [asked for _, asked in made]

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        task = self._loop.create_task(self._go_on())
        self._loop.run_forever()
        task.cancel()
        for open_task in self._tasks:
            open_task.cancel()
        self._loop.run_until_complete(asyncio.gather(task, *self._tasks, return_exceptions=True))
        self._loop.close()

    async def _go_on(self) -> None:
        due_s = time.monotonic()
        while self._wanted.is_set():
            asked = self._ask() if len(self._ledger.open()) < MOST_OPEN else 1
            due_s = max(due_s + asked / self._rate, time.monotonic() - 1)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    def _ask(self) -> int:
        """One request, or a batch; how many they were."""
        kind, stream = self._chance.random(), self._chance.random() < 0.5
        if kind < 0.5:
            index = self._chance.randrange(len(self._ports))
            self._ask_gateway(self._ledger.add("gateway", stream, gateway=index), index, self._body(self._behaviour(), stream=stream))
            return 1
        if kind < 0.98:
            self._publish(stream, batch=False)
            return 1
        for number in range(BATCH):
            self._publish(number % 2 == 0, batch=True)
        return BATCH

    def _behaviour(self) -> str:
        latency, gap = self._chance.choice((50, 300, 800)), self._chance.choice((20, 80, 200))
        return f"mock?latency={latency}ms&gap={gap}ms&tokens={TOKENS}"

    def _body(self, behaviour: str, *, stream: bool) -> dict[str, Any]:
        return {"model": self._model, "mock": behaviour, "messages": [{"role": "user", "content": "hello there"}], "stream": stream}

    def _ask_gateway(self, asked: Asked, index: int, body: dict[str, Any]) -> None:
        task = self._loop.create_task(client.ask(self._ledger, asked, self._ports[index], body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _publish(self, stream: bool, *, batch: bool) -> None:
        asked = self._ledger.add("direct", stream, request_id=str(uuid.uuid4()))
        payload = {
            "request_id": asked.request_id,
            "stream": stream,
            "endpoint": self._service.websocket_url if stream else self._service.http_url,
            "data": self._body(self._behaviour(), stream=stream),
            "metadata": {"headers": {"User-Agent": [asked.tag]}},
        }

        def confirmed(result: pulsar.Result, _: object) -> None:
            if result == pulsar.Result.Ok:
                asked.sent_s = time.monotonic()
            elif asked.final is None:
                self._ledger.end(asked, "unsent", {"code": str(result)})

        try:
            self._producers[batch].send_async(json.dumps(payload).encode(), confirmed)
        except pulsar.PulsarException as error:
            self._ledger.end(asked, "unsent", {"code": type(error).__name__})

    def _producer(self, batch: bool) -> Any:
        # No timeout: a request that the client gives up may be in the queue all the same.
        options = BATCHED if batch else {"batching_enabled": False}
        return self._client.create_producer(request_topic(self._model), send_timeout_millis=0, max_pending_messages=5000, **options)
