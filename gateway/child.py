"""The gateway as a supervised child: the same server, ended through its channel."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from errors import ExitCode
from gateway.server import serve
from ipc.channel import ChannelBroken, ChildEnd, PipeEnd
from ipc.messages import Ready, Stop, Unusable
from ipc.spawned import leave_ending_to_supervisor
from messaging.client import leave
from reporting.log import set_up_log

if TYPE_CHECKING:
    from config import Settings

LISTEN_S = 60.0


def main(settings: Settings, reading: PipeEnd, writing: PipeEnd) -> None:
    """The spawned process's main."""
    leave_ending_to_supervisor()
    set_up_log(settings, "gateway")
    channel, stop = ChildEnd(reading, writing), threading.Event()
    threading.Thread(target=_listen, args=(channel, stop), name="listener", daemon=True).start()
    code = serve(settings, lambda: channel.send(Ready(0)), stop, own_model=settings.model_name)
    if code == ExitCode.CONFIGURATION:
        channel.send(Unusable(f"PORT {settings.port} cannot be had", permanent=True))
    leave(code)


def _listen(channel: ChildEnd, stop: threading.Event) -> None:
    """Requesters may be waiting: a supervisor that is only slow is no reason to end, one that is gone is."""
    try:
        while not any(isinstance(message, Stop) for message in channel.receive(LISTEN_S)):
            pass
    except ChannelBroken:
        pass  # the supervisor is gone, and so is what this gateway was started for
    stop.set()
