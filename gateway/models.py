"""Which models exist: those that a node has subscribed to, be it scaled to zero by now.

Asked of Pulsar's admin address where there is one. Where it does not answer, requests go through.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from loguru import logger

from messaging.admin import NAMESPACE, AdminSilent
from messaging.topics import request_topic, subscription

KNOWN_FOR_S = 60.0
UNKNOWN_FOR_S = 3.0
SILENT_FOR_S = 5.0
LISTED_FOR_S = 3.0
MAX_REMEMBERED = 1000
_PREFIX = f"persistent://{NAMESPACE}/{request_topic('')}"


def is_model_name(name: str) -> bool:
    """Whether a topic can be named after it, one that is not a dead-letter topic or a part of another."""
    return bool(re.fullmatch(r"[^\s/\x00-\x1f\x7f]{1,200}", name)) and not re.search(r"-(DLQ|RETRY|partition-\d+)$", name)


class Admin(Protocol):
    """Pulsar's admin API, as far as it is used here. Blocks; both raise AdminSilent."""

    def subscriptions(self, topic: str) -> list[str]:
        """None where there is no such topic."""

    def topics(self) -> list[str]:
        """Full names, of partitioned topics and of the others."""


class Models:
    """admin: None where there is no admin address; own: the model that this process's supervisor serves, or empty."""

    def __init__(self, admin: Admin | None = None, own: str = "") -> None:
        self.started_at_s = int(time.time())
        self._admin, self._own = admin, own
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._verdicts: OrderedDict[str, tuple[bool, float]] = OrderedDict()
        self._asking: dict[str, asyncio.Task[bool]] = {}
        self._list: tuple[list[str], float] = ([], 0.0)
        self._listing = asyncio.Lock()
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="admin")
        self._silent = False

    def saw(self, model: str) -> None:
        """A node has answered for this model."""
        self._seen[model] = None
        self._seen.move_to_end(model)
        if len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)

    async def known(self, model: str) -> bool:
        """True too where it cannot be found out. Costs a call to the admin address now and then."""
        if self._admin is None or model == self._own:
            return True
        verdict, until = self._verdicts.get(model, (True, 0.0))
        if time.monotonic() < until:
            return verdict
        task = self._asking.get(model)
        if task is None:
            task = self._asking[model] = asyncio.create_task(self._ask(model))
        return await asyncio.shield(task)  # others wait for the same answer

    async def _ask(self, model: str) -> bool:
        try:
            verdict = subscription(model) in await self._call("subscriptions", request_topic(model))
            lasts_s = KNOWN_FOR_S if verdict else UNKNOWN_FOR_S
        except AdminSilent:
            verdict, lasts_s = True, SILENT_FOR_S
        finally:
            del self._asking[model]
        self._verdicts[model] = (verdict, time.monotonic() + lasts_s)
        self._verdicts.move_to_end(model)
        if len(self._verdicts) > MAX_REMEMBERED:
            self._verdicts.popitem(last=False)
        return verdict

    async def listed(self) -> list[str]:
        """Names in order. Without an admin address: the own model, and those that were answered for."""
        if self._admin is None:
            return self._witnessed()
        async with self._listing:
            names, until = self._list
            if time.monotonic() >= until:
                names, lasts_s = await self._ask_all()
                self._list = (names, time.monotonic() + lasts_s)
            return names

    def _witnessed(self) -> list[str]:
        return sorted({*self._seen, self._own} - {""})

    async def _ask_all(self) -> tuple[list[str], float]:
        try:
            names = sorted(model_names(await self._call("topics")))
            served = await asyncio.gather(*(self._call("subscriptions", request_topic(name)) for name in names))
        except AdminSilent:
            return self._witnessed(), SILENT_FOR_S
        return [name for name, found in zip(names, served, strict=True) if subscription(name) in found], LISTED_FOR_S

    async def _call(self, method: str, *arguments: str) -> list[str]:
        try:
            found: list[str] = await asyncio.get_running_loop().run_in_executor(
                self._threads, getattr(self._admin, method), *arguments
            )
        except AdminSilent as why:
            self._report(True, str(why))
            raise
        self._report(False, "")
        return found

    def _report(self, silent: bool, why: str) -> None:
        """Once a change, not once a call."""
        if silent and not self._silent:
            logger.warning("PULSAR_ADMIN_URL gives no usable answer, so unknown models are not refused: {}", why)
        self._silent = silent

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def model_names(topics: list[str]) -> set[str]:
    """Topics' full names → models' names, each once, a topic's partitions as one."""
    whole = {re.sub(r"-partition-\d+$", "", topic) for topic in topics if topic.startswith(_PREFIX)}
    return {topic.removeprefix(_PREFIX) for topic in whole if is_model_name(topic.removeprefix(_PREFIX))}
