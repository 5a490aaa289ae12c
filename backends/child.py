"""A backend child's life: boot, take requests from the channel, answer them, say how each ended, end. One event loop does all
of it: a thread for each request in flight would cost more than the request.

It knows nothing of Pulsar or Kubernetes. It exits when its channel closes or its supervisor's lease runs out:
a stopped supervisor must not have children that go on answering what the broker has given to others meanwhile. Before
it does, streams that have begun are ended with an error: their requesters would wait for ever.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, NoReturn

import uvloop
from loguru import logger

from answers.allowed import Allowed
from answers.delivery import Couriers
from answers.endpoint import NodeStopped
from backends.aboard import Aboard
from backends.base import Backend, BackendUnusable
from backends.late import LateDeliveries
from backends.probe import probe
from backends.work import Worker
from errors import ExitCode
from ipc.channel import ChannelBroken, PipeEnd, WorkerEnd
from ipc.messages import Alive, Lease, Probe, Ready, Refuse, Stop, Task, ToChild, Unusable
from ipc.onloop import LoopEnd
from ipc.spawned import leave_ending_to_supervisor
from reporting.log import set_up_log

if TYPE_CHECKING:
    from config import Settings

LEASE_S = 10.0
LAST_OUTCOMES_WITHIN_S = 5.0
LAST_FRAMES_WITHIN_S = 2.0
LAST_WORDS_WITHIN_S = 0.5


def main(settings: Settings, number: int, room: int, reading: PipeEnd, writing: PipeEnd, lease_s: float = LEASE_S) -> None:
    """The spawned process's main. `number`: this child's place, from 0; `room`: requests it may be given at once."""
    leave_ending_to_supervisor()
    set_up_log(settings, f"backend {number}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_live(settings, number, room, WorkerEnd(reading, writing), lease_s))


async def _live(settings: Settings, number: int, room: int, end: WorkerEnd, lease_s: float) -> NoReturn:
    try:
        backend = build(settings, number, room)
    except BackendUnusable as unusable:
        end.send(Unusable(unusable.message, unusable.permanent))
        sys.stderr.flush()
        os._exit(ExitCode.BACKEND_UNUSABLE)
    await Child(settings, backend, room, end, lease_s).run()


class Child:
    def __init__(self, settings: Settings, backend: Backend, room: int, end: WorkerEnd, lease_s: float) -> None:
        self._settings, self._backend, self._lease_s = settings, backend, lease_s
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[ExitCode] = self._loop.create_future()
        self._works: set[asyncio.Task[None]] = set()
        self._giving_up = False
        self._channel = LoopEnd(end, self._hear, self._on_broken)
        self._aboard = Aboard()
        self._aboard.lease.is_cut = self._channel.is_cut
        couriers = Couriers(room, settings.ca_bundle or None, self._aboard.cancel, Allowed(settings.allowed_endpoints))
        couriers.links.pace.ends_with(end.read_fd)
        self._worker = Worker(settings, backend, couriers, self._channel, LateDeliveries(), self._aboard)
        self._renew()
        self._loop.call_at(self._aboard.lease.until_s, self._look_at_lease)

    async def run(self) -> NoReturn:
        serving = asyncio.create_task(self._serve())
        code = await self._over
        serving.cancel()
        await self._end(code)

    async def _serve(self) -> None:
        try:
            slots = await self._backend.start()
            self._channel.send(Ready(slots, self._backend.pids()))
            await self._backend.watch()
        except BackendUnusable as unusable:
            await self._give_up(unusable)
        except ChannelBroken:
            self._finish(ExitCode.SUPERVISOR_GONE)
        except Exception:
            logger.exception("the child hit a bug of the node")
            self._finish(ExitCode.CRASHED)

    async def _give_up(self, unusable: BackendUnusable) -> None:
        """Said first, so that nothing more is sent here. What runs is about to fail by itself, and its outcomes go out
        before the end, as only they know how far each came."""
        self._giving_up = True
        try:
            await self._channel.say(Unusable(unusable.message, unusable.permanent))
        except ChannelBroken:
            return  # which has ended it
        if self._works:
            await asyncio.wait(self._works, timeout=LAST_OUTCOMES_WITHIN_S)
        self._finish(ExitCode.BACKEND_UNUSABLE)

    def _finish(self, code: ExitCode) -> None:
        if not self._over.done():
            self._over.set_result(code)

    async def _end(self, code: ExitCode) -> NoReturn:
        try:
            # Others have these requests, or will; but a stream that has begun can only be ended, and best from here.
            await self._aboard.end_all(NodeStopped("its child ends"), LAST_FRAMES_WITHIN_S)
            await self._say_last_words()
            self._backend.stop()
            sys.stderr.flush()
        finally:
            os._exit(code)  # a look-up in the middle, or a model that still loads, would keep the interpreter from ending

    async def _say_last_words(self) -> None:
        try:
            async with asyncio.timeout(LAST_WORDS_WITHIN_S):
                await self._channel.emptied()
        except (ChannelBroken, TimeoutError):
            return

    # what the supervisor says

    def _hear(self, message: ToChild) -> None:
        self._renew()
        if isinstance(message, Task):
            if not self._giving_up:  # else the supervisor counts it among what was aboard when this child ended
                self._work(self._worker.compute(message, self._worker.board(message)))
        elif isinstance(message, Lease):
            self._answer_lease()
        elif isinstance(message, Refuse):
            self._work(self._worker.refuse(message, self._worker.board_refusal(message)))
        elif isinstance(message, Probe):
            self._work(self._probe(message.asks))
        else:
            assert isinstance(message, Stop)
            self._finish(ExitCode.OK)

    def _work(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._works.add(task)  # the loop alone does not keep it
        task.add_done_callback(self._works.discard)

    def _answer_lease(self) -> None:
        try:
            self._channel.send(Alive(self._aboard.overdue(), self._aboard.produced(), time.monotonic()))
        except ChannelBroken:
            return

    async def _probe(self, asks: bool) -> None:
        probed = await probe(self._backend, self._settings, asks)
        try:
            self._channel.send(probed)
        except ChannelBroken:
            return

    # the lease

    def _renew(self) -> None:
        self._aboard.lease.until_s = time.monotonic() + self._lease_s

    def _look_at_lease(self) -> None:
        """A process that was stopped has what the supervisor said meanwhile unread."""
        if time.monotonic() >= self._aboard.lease.until_s:
            self._channel.listen()
        if (until_s := self._aboard.lease.until_s) <= time.monotonic():
            self._finish(ExitCode.SUPERVISOR_GONE)
        else:
            self._loop.call_later(until_s - time.monotonic(), self._look_at_lease)

    def _on_broken(self) -> None:
        self._finish(ExitCode.SUPERVISOR_GONE)


def build(settings: Settings, number: int, room: int) -> Backend:
    """Imports only the backend it builds: a child should boot fast."""
    if settings.node_type == "demo":
        from backends.demo import DemoBackend

        return DemoBackend(settings)
    if settings.node_type == "local":
        from backends.local import LocalBackend

        return LocalBackend(settings, number, room, _say)
    from backends.api import ApiBackend

    return ApiBackend(settings, api_url=settings.api_url, api_key=settings.api_key, most_rested=room)


def _say(words: str) -> None:
    logger.info("{}", words)
