"""A backend child's life: boot, take requests from the channel, answer them, say how each ended, end.

It knows nothing of Pulsar or Kubernetes. It exits when its channel closes or its supervisor's lease runs out:
a stopped supervisor must not have children that go on answering what the broker has given to others meanwhile. Before
it does, streams that have begun are ended with an error: their requesters would wait for ever.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NoReturn

from loguru import logger

from answers.allowed import Allowed
from answers.delivery import Couriers
from answers.endpoint import NodeStopped
from answers.run import Run
from backends.aboard import Aboard
from backends.base import Backend, BackendUnusable
from backends.late import LateDeliveries
from backends.probe import probe
from backends.work import Worker
from errors import ExitCode
from ipc.channel import ChannelBroken, ChildEnd, PipeEnd
from ipc.messages import Alive, Lease, Probe, Ready, Refuse, Stop, Task, ToChild, Unusable
from ipc.spawned import leave_ending_to_supervisor
from reporting.log import set_up_log

if TYPE_CHECKING:
    from config import Settings

LEASE_S = 10.0
CHECK_EACH_S = 0.2
LAST_OUTCOMES_WITHIN_S = 5.0
LAST_FRAMES_WITHIN_S = 2.0
REFUSALS_AT_ONCE = 4
PROBE_NUMBER = 0  # no request has it


def main(settings: Settings, number: int, threads: int, reading: PipeEnd, writing: PipeEnd, lease_s: float = LEASE_S) -> None:
    """The spawned process's main. `number`: this child's place, from 0; `threads`: requests it may be given at once."""
    leave_ending_to_supervisor()
    set_up_log(settings, f"backend {number}")
    channel = ChildEnd(reading, writing)
    try:
        child = Child(settings, build(settings, number, threads), threads, channel, lease_s)
    except BackendUnusable as unusable:
        channel.send(Unusable(unusable.message, unusable.permanent))
        sys.exit(ExitCode.BACKEND_UNUSABLE)
    child.run()


class Child:
    def __init__(self, settings: Settings, backend: Backend, threads: int, channel: ChildEnd, lease_s: float) -> None:
        self._settings, self._backend, self._channel, self._lease_s = settings, backend, channel, lease_s
        self._aboard = Aboard()
        couriers = Couriers(threads, settings.ca_bundle or None, self._aboard.cancel, Allowed(settings.allowed_endpoints))
        self._worker = Worker(settings, backend, couriers, channel.send, LateDeliveries(), self._aboard)
        self._tasks = ThreadPoolExecutor(threads, thread_name_prefix="task")
        self._refusals = ThreadPoolExecutor(REFUSALS_AT_ONCE, thread_name_prefix="refusal")  # never behind the tasks
        self._probes = ThreadPoolExecutor(1, thread_name_prefix="probe")
        self._stopped = threading.Event()
        self._giving_up = False
        self._ending = threading.Lock()

    def run(self) -> NoReturn:
        threading.Thread(target=self._listen, name="listener", daemon=True).start()
        try:
            slots = self._backend.start()
            self._channel.send(Ready(slots, self._backend.pids()))
            while not self._stopped.wait(CHECK_EACH_S):
                self._backend.check()
        except BackendUnusable as unusable:
            self._give_up(unusable)
        except ChannelBroken:
            self._end(ExitCode.SUPERVISOR_GONE)
        except Exception:
            logger.exception("the child hit a bug of the node")
            self._end(ExitCode.CRASHED)
        self._end(ExitCode.OK)

    def _give_up(self, unusable: BackendUnusable) -> NoReturn:
        """Said first, so that nothing more is sent here. What runs is about to fail by itself, and its outcomes go out
        before the end, as only they know how far each came."""
        self._giving_up = True
        try:
            self._channel.send(Unusable(unusable.message, unusable.permanent))
        except ChannelBroken:
            self._end(ExitCode.SUPERVISOR_GONE)
        ended = threading.Thread(target=self._tasks.shutdown, daemon=True)
        ended.start()
        ended.join(LAST_OUTCOMES_WITHIN_S)
        self._end(ExitCode.BACKEND_UNUSABLE)

    def _end(self, code: ExitCode) -> NoReturn:
        self._ending.acquire()  # for good: the listener and the main thread may both have a reason to end
        try:
            # Others have these requests, or will; but a stream that has begun can only be ended, and best from here.
            self._aboard.end_all(NodeStopped("its child ends"), LAST_FRAMES_WITHIN_S)
            self._backend.stop()
            sys.stderr.flush()
        finally:
            os._exit(code)  # threads in the middle of a request would keep the interpreter from ending

    def _listen(self) -> None:
        """The only reader of the channel. Leaving it means that nobody is left to work for."""
        lease = self._aboard.lease
        lease.until_s, lease.is_cut = time.monotonic() + self._lease_s, self._channel.is_cut
        try:
            while messages := self._channel.receive(self._lease_s):
                lease.until_s = time.monotonic() + self._lease_s
                for message in messages:
                    if isinstance(message, Stop):
                        self._stopped.set()
                        return
                    self._take(message)
        except ChannelBroken:
            pass  # the supervisor is gone: the same as a lease that ran out
        except Exception:  # no more threads or memory to be had: a child that hears nothing would hold its requests for ever
            logger.exception("the child cannot listen to its supervisor any more")
            self._end(ExitCode.CRASHED)
        self._end(ExitCode.SUPERVISOR_GONE)

    def _probe(self, asks: bool) -> None:
        run = self._aboard.add(Run(PROBE_NUMBER, "probe"))
        try:
            self._channel.send(probe(self._backend, self._settings, run, asks))
        except ChannelBroken:
            pass  # the listener has noticed too
        finally:
            self._aboard.remove(run)

    def _take(self, message: ToChild) -> None:
        if isinstance(message, Task):
            if not self._giving_up:  # else the supervisor counts it among what was aboard when this child ended
                self._tasks.submit(self._worker.compute, message, self._worker.board(message))
        elif isinstance(message, Probe):
            self._probes.submit(self._probe, message.asks)
        elif isinstance(message, Lease):
            self._channel.send(Alive(self._aboard.overdue(), self._aboard.produced(), time.monotonic()))
        elif isinstance(message, Refuse):
            self._refusals.submit(self._worker.refuse, message, self._worker.board_refusal(message))


def build(settings: Settings, number: int, threads: int) -> Backend:
    """Imports only the backend it builds: a child should boot fast."""
    if settings.node_type == "demo":
        from backends.demo import DemoBackend

        return DemoBackend(settings)
    if settings.node_type == "local":
        from backends.local import LocalBackend

        return LocalBackend(settings, number, threads, _say)
    from backends.api import ApiBackend

    return ApiBackend(settings, api_url=settings.api_url, api_key=settings.api_key, threads=threads)


def _say(words: str) -> None:
    logger.info("{}", words)
