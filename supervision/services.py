"""What spawned processes run: a backend, or a child that serves instead of working on requests (the gateway, the broker): the
same server as when started by itself, ended through its channel. Each imports what it needs, and the supervisor none of it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from errors import ExitCode
from ipc.channel import ChannelBroken, ChildEnd, PipeEnd
from ipc.messages import Alive, Lease, Ready, Stop, Unusable
from ipc.spawned import leave_ending_to_supervisor
from reporting.log import set_up_log

if TYPE_CHECKING:
    from broker.options import Options
    from config import Settings

LISTEN_S = 60.0
Serve = Callable[[Callable[[], None], threading.Event], int]  # (ready, stop) → exit code


def backend(settings: Settings, number: int, room: int, reading: PipeEnd, writing: PipeEnd) -> None:
    """The spawned process's main."""
    from backends.child import main

    main(settings, number, room, reading, writing)


def gateway(settings: Settings, reading: PipeEnd, writing: PipeEnd) -> None:
    """The spawned process's main."""
    from gateway.server import serve
    from messaging.client import leave

    leave(_run("gateway", settings, lambda ready, stop: serve(settings, ready, stop, own_model=settings.model_name), reading, writing))


def broker(settings: Settings, options: Options, reading: PipeEnd, writing: PipeEnd) -> None:
    """The spawned process's main."""
    from broker.server import serve

    sys.exit(_run("broker", settings, lambda ready, stop: serve(options, ready, stop), reading, writing))


def _run(name: str, settings: Settings, serve: Serve, reading: PipeEnd, writing: PipeEnd) -> int:
    """Its life; returns its exit code. 78 is told to the supervisor as permanent."""
    leave_ending_to_supervisor()
    set_up_log(settings, name)
    channel, stop = ChildEnd(reading, writing), threading.Event()
    threading.Thread(target=_listen, args=(channel, stop), name="listener", daemon=True).start()
    code = serve(lambda: channel.send(Ready(0)), stop)
    if code == ExitCode.CONFIGURATION:
        channel.send(Unusable(f"the {name} cannot start; what is wrong is said above", permanent=True))
    return code


def _listen(channel: ChildEnd, stop: threading.Event) -> None:
    """Others may depend on it: a supervisor that is only slow is no reason to end, one that is gone is."""
    try:
        while not stop.is_set():
            for message in channel.receive(LISTEN_S):
                if isinstance(message, Lease):
                    channel.send(Alive())
                elif isinstance(message, Stop):
                    stop.set()
    except ChannelBroken:
        stop.set()  # the supervisor is gone, and so is what this was started for
