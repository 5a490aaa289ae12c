"""A backend child's life: boot, take requests from the channel, answer them, say how each ended, end.

It knows nothing of Pulsar or Kubernetes. It exits when its channel closes or its supervisor's lease runs out:
a stopped supervisor must not have children that go on answering what the broker has given to others meanwhile.
"""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from answers.delivery import Couriers
from backends.base import Backend, BackendUnusable
from backends.late import LateDeliveries
from backends.work import Worker
from errors import ExitCode
from ipc.channel import ChannelBroken, ChildEnd, PipeEnd
from ipc.messages import Ready, Refuse, Stop, Task, Unusable
from ipc.spawned import leave_ending_to_supervisor
from reporting.log import set_up_log

if TYPE_CHECKING:
    from config import Settings

LEASE_S = 10.0
CHECK_EACH_S = 0.5


def main(settings: Settings, number: int, threads: int, reading: PipeEnd, writing: PipeEnd) -> None:
    """The spawned process's main. `number`: this child's place, from 0; `threads`: requests it may be given at once."""
    leave_ending_to_supervisor()
    set_up_log(settings, f"backend {number}")
    child = Child(settings, number, threads, ChildEnd(reading, writing))
    sys.exit(child.run())


class Child:
    def __init__(self, settings: Settings, number: int, threads: int, channel: ChildEnd) -> None:
        self._settings, self._channel = settings, channel
        self._backend = build(settings, number, threads)
        couriers = Couriers(threads, settings.ca_bundle or None)
        late = LateDeliveries()
        self._worker = Worker(settings, self._backend, couriers, channel.send, late)
        self._tasks = ThreadPoolExecutor(threads, thread_name_prefix="task")
        self._refusals = ThreadPoolExecutor(4, thread_name_prefix="refusal")  # never behind the tasks
        self._stopped = threading.Event()

    def run(self) -> ExitCode:
        threading.Thread(target=self._listen, name="listener", daemon=True).start()
        try:
            slots = self._backend.start()
            self._channel.send(Ready(slots, self._backend.pids()))
            while not self._stopped.wait(CHECK_EACH_S):
                self._backend.check()
        except BackendUnusable as unusable:
            return self._give_up(unusable)
        except ChannelBroken:
            return self._end(ExitCode.SUPERVISOR_GONE)
        return self._end(ExitCode.OK)

    def _give_up(self, unusable: BackendUnusable) -> ExitCode:
        """What runs is about to fail by itself; its outcomes go out first, as only they know how far each came."""
        self._tasks.shutdown(wait=True, cancel_futures=False)
        self._channel.send(Unusable(unusable.message, unusable.permanent))
        return self._end(ExitCode.BACKEND_UNUSABLE)

    def _end(self, code: ExitCode) -> ExitCode:
        self._backend.stop()
        sys.stderr.flush()
        os._exit(code)  # threads in the middle of a request would keep the interpreter from ending

    def _listen(self) -> None:
        """The only reader of the channel. Leaving it means that nobody is left to work for."""
        try:
            while messages := self._channel.receive(LEASE_S):
                for message in messages:
                    if isinstance(message, Task):
                        self._tasks.submit(self._worker.compute, message)
                    elif isinstance(message, Refuse):
                        self._refusals.submit(self._worker.refuse, message)
                    elif isinstance(message, Stop):
                        self._stopped.set()
                        return
        except RuntimeError:
            return  # the pool is closed as the backend died; the supervisor counts what was still aboard
        except ChannelBroken:
            pass  # the supervisor is gone: the same as a lease that ran out
        self._end(ExitCode.SUPERVISOR_GONE)


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
    from loguru import logger

    logger.info("{}", words)
