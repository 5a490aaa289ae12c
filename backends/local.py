"""The local backend: a model server of our own on this machine, spoken to as any API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from backends.api import ApiBackend
from backends.base import Account, BackendUnusable, Call, Sink
from backends.body import Habits
from backends.modelserver import ModelServer
from backends.transport import UpstreamFailed
from backends.watch import Watch
from errors import Scope, verdict

if TYPE_CHECKING:
    from config import Settings

STOP_WITHIN_S = 3.0  # below what the supervisor gives the child
CERTAIN_WITHIN_S, ASK_AGAIN_EACH_S = 5.0, 0.05
CHECK_EACH_S = 0.2
REPLACED_WITHIN_S = 0.3  # it is of no use any more


class LocalBackend:
    def __init__(self, settings: Settings, replica: int, room: int, say: Callable[[str], None]) -> None:
        self._settings, self._room = settings, room
        self._server = ModelServer(settings, replica, say)
        self._watch: Watch | None = None
        self._is_over = asyncio.Event()
        self._api: ApiBackend | None = None

    async def start(self) -> int:
        await asyncio.to_thread(self._server.start)  # a model may load for minutes
        self._watch = Watch(self._server, self._settings.upstream_model)
        # Always streamed: llama.cpp's server stops generating for a requester that left only in the middle of a stream.
        self._api = ApiBackend(
            self._settings, api_url=self._server.base_url, api_key="", most_rested=self._room, habits=Habits(stream=True)
        )
        return self._server.slots

    async def answer(self, call: Call, sink: Sink, account: Account) -> None:
        assert self._api is not None and self._watch is not None, "a request came before the model server was ready"
        account.on_output = _both(self._watch.saw_output, account.on_output)
        try:
            await self._api.answer(call, sink, account)
        except UpstreamFailed as failed:
            if verdict(failed.failure).scope is Scope.RETRY:
                await self._await_certainty(self._watch)
            raise

    async def _await_certainty(self, watch: Watch) -> None:
        """Its slot stays taken until it is known whether the server still serves: one that fails at once would otherwise
        fail everybody who waits, one attempt after the other."""
        doubt, until_s = watch.doubt(), time.monotonic() + CERTAIN_WITHIN_S
        while not watch.is_settled(doubt) and not self._is_over.is_set() and time.monotonic() < until_s:
            await asyncio.sleep(ASK_AGAIN_EACH_S)

    async def reach(self) -> None:
        assert self._api is not None, "a probe came before the model server was ready"
        await self._api.reach()

    async def watch(self) -> None:
        try:
            while True:
                await asyncio.to_thread(self._check)  # it asks the server for its health
                await asyncio.sleep(CHECK_EACH_S)
        finally:
            self._is_over.set()

    def _check(self) -> None:
        """Raises BackendUnusable."""
        if not self._server.alive():
            raise BackendUnusable(f"the model server died: {self._server.exit_report()}", permanent=False)
        if self._watch is not None and (wrong := self._watch.look()):
            words = f"the model server is replaced: {wrong}{self._server.quoted()}"
            self._server.stop(REPLACED_WITHIN_S)  # what runs there would wait for ever
            raise BackendUnusable(words, permanent=False)

    def pids(self) -> list[int]:
        return self._server.pids()

    def stop(self) -> None:
        if self._api is not None:
            self._api.stop()
        self._server.stop(STOP_WITHIN_S)


def _both(first: Callable[[], None], second: Callable[[], None] | None) -> Callable[[], None]:
    def call() -> None:
        first()
        if second is not None:
            second()

    return call
