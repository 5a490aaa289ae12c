"""What systemd is told of the node (Type=notify): that it is ready, what it does, and that its loop still turns.

The protocol, sd_notify(3): a datagram of NAME=value lines to the Unix socket that NOTIFY_SOCKET names. Without one nothing
is said, at no cost.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, MutableMapping

SAY_EACH_S = 1.0  # at most, whatever changes
BEAT_EACH_S = 5.0  # where systemd asks for no watchdog
START_GOES_ON_S = 60.0  # a start may take for ever (a model loads, the queue is away), a loop that stands still may not


class Notifier:
    """`tell` comes from the loop, each turn, so that a loop that stands still misses the watchdog (WatchdogSec=)."""

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        """Takes systemd's variables out of the environment: they are not for the children."""
        environ = os.environ if environ is None else environ
        address = environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address  # @: an abstract name, unix(7)
        self._beat_each_s = _watchdog_s(environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")) / 4 or BEAT_EACH_S
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._sent_s, self._said = 0.0, ""
        self._is_ready, self._why_not, self._last_trouble = False, "", ""

    def tell(self, why_not_ready: str, work: Callable[[], str]) -> None:
        """`why_not_ready`: "" while the node takes requests; `work`: how much it has in hand, for `systemctl status`; asked
        only where somebody listens."""
        if not self._address:
            return
        now_s, status = time.monotonic(), self._status(why_not_ready, work())
        becomes_ready = not why_not_ready and not self._is_ready
        due_s = self._sent_s + (min(SAY_EACH_S, self._beat_each_s) if status != self._said else self._beat_each_s)
        if now_s < due_s and not becomes_ready:
            return
        self._is_ready = self._is_ready or becomes_ready
        progress = "READY=1" if self._is_ready else f"EXTEND_TIMEOUT_USEC={START_GOES_ON_S * 1e6:.0f}"
        self._sent_s, self._said = now_s, status
        self._send(progress, "WATCHDOG=1", f"STATUS={status}")

    def stopping(self, within_s: float) -> None:
        """The node ends by itself within this time, which may be longer than the unit's TimeoutStopSec."""
        if self._address:
            self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={within_s * 1e6:.0f}")

    def _status(self, why_not_ready: str, work: str) -> str:
        """The last trouble stays there once it has passed: it is what somebody who looks in the morning asks for."""
        if self._is_ready and why_not_ready and why_not_ready != self._why_not:
            self._last_trouble = f"; last trouble, {time.strftime('%Y-%m-%d %H:%M:%S')}: {why_not_ready}"
        self._why_not = why_not_ready
        return " ".join(f"{why_not_ready or 'ready'}; {work}{'' if why_not_ready else self._last_trouble}".split())

    def _send(self, *lines: str) -> None:
        with contextlib.suppress(OSError):  # systemd is busy, or starts anew: the next beat says it
            self._socket.sendto("\n".join(lines).encode(), self._address)


def _watchdog_s(interval_us: str, pid: str) -> float:
    """How long systemd waits for a beat; 0.0 where it waits for none, or for another process's. See sd_watchdog_enabled(3)."""
    return int(interval_us) / 1e6 if interval_us.isdigit() and pid in ("", str(os.getpid())) else 0.0
