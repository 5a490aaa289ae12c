"""What every spawned child does first, and what its supervisor does around the spawning: signals."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from multiprocess import resource_tracker

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Around a spawn: the child inherits the blocked signals, and none can hit it before it has its handlers."""
    resource_tracker.ensure_running()  # the first spawn would start it, and unblock them again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_ending_to_supervisor() -> None:
    """Ctrl-C reaches the whole foreground group, and some service managers signal every process of a service: a drain
    needs its children all the same. A handler that does nothing, as SIG_IGN would be inherited by model servers."""
    for number in ENDING_SIGNALS:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
