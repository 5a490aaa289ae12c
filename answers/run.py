"""One request in a child's hands, as threads other than its worker's see it: ended by them, begun, overdue."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Callable

LOOK_EACH_S = 0.005
AWAY_FROM_S = 0.1  # without a look: it waited for its upstream, or the process was stopped
MARGIN_S = 5.0  # what a step may take beyond its own time-outs, on a machine that is short of everything


def _say_nothing() -> None:
    return


def _never() -> bool:
    return False


class Lease:
    """Until when (monotonic) the supervisor's word holds that this process's requests are its own, and whether the
    supervisor is gone already. A process that was stopped may find that others answer them."""

    def __init__(self) -> None:
        self.until_s = math.inf
        self.is_cut: Callable[[], bool] = _never


class Run:
    """number: names it towards the supervisor; announce: says there that a stream's first frame is about to go out.

    by_s: monotonic; a worker that shows no step until then hangs. ended: why its work is to end, once it is.
    produced: pieces of output so far.
    """

    def __init__(self, number: int, request_id: str, announce: Callable[[], None] = _say_nothing) -> None:
        self.number, self.request_id = number, request_id
        self.by_s = math.inf
        self.begun = False
        self.produced = 0
        self.ended: Exception | None = None
        self.lease = Lease()
        self._checked_s = 0.0
        self.changed = threading.Condition()
        self._announce = announce
        self._handle: socket.socket | None = None

    # by other threads

    def end(self, why: Exception) -> None:
        """Its worker gets `why` raised, within milliseconds wherever it waits. The first reason stands."""
        with self.changed:
            if self.ended is None:
                self.ended = why
                self._shut()
                self.changed.notify_all()

    def shake(self) -> None:
        """Shut what its worker waits on, which then fails. It is not ended by that."""
        with self.changed:
            self._shut()

    def tell(self) -> None:
        """Something that its worker may be waiting for has changed."""
        with self.changed:
            self.changed.notify_all()

    # by its worker

    def check(self) -> None:
        """Raises what it was ended for. Where the lease is over, whoever listens to the supervisor is about to renew it, or
        to end all runs: nothing may go out before that is known."""
        now_s = time.monotonic()
        was_away = now_s - self._checked_s > AWAY_FROM_S
        while self.ended is None and (time.monotonic() > self.lease.until_s or (was_away and self.lease.is_cut())):
            time.sleep(LOOK_EACH_S)
        self._checked_s = now_s
        if self.ended is not None:
            raise self.ended

    def begin(self) -> None:
        """Before a stream's first frame. Raises what it was ended for: then nothing may go out."""
        self.check()  # not with the lock: it may wait for the end, which takes it
        with self.changed:
            if self.ended is not None:
                raise self.ended
            first, self.begun = not self.begun, True
        if first:
            try:
                self._announce()
            except BaseException:
                self.begun = False  # nobody knows of it, and nothing is out
                raise

    def step(self, within_s: float) -> None:
        """The next thing that its worker does is over by then."""
        self.by_s = time.monotonic() + within_s + MARGIN_S

    def note_output(self) -> None:
        self.produced += 1

    def rest(self) -> None:
        """Nothing is due for now."""
        self.by_s = math.inf

    def wait(self, found: Callable[[], object], timeout_s: float, *, though_ended: bool = False) -> None:
        """Until `found` holds, it is ended, or the time is over."""
        with self.changed:
            self.changed.wait_for(lambda: found() or (self.ended is not None and not though_ended), timeout_s)

    def hold(self, connection: socket.socket) -> socket.socket:
        """From now on its end shuts this connection, also while it connects. Returns the hold, for `let_go`. Raises what
        it was ended for."""
        # A duplicate, as TLS and http.client put the socket itself into other hands, and numbers of closed ones are reused.
        handle = socket.socket(connection.family, connection.type, connection.proto, os.dup(connection.fileno()))
        with self.changed:
            self._close_handle()
            self._handle = handle
            if self.ended is not None:
                self._close_handle()
                raise self.ended
        return handle

    def let_go(self, handle: socket.socket | None = None) -> None:
        """Of this hold, or of any. The connection may then be another's."""
        with self.changed:
            if handle is None or handle is self._handle:
                self._close_handle()

    def held(self) -> int | None:
        """A descriptor of what it holds. It stays open, whoever closes theirs, until it is let go."""
        with self.changed:
            return None if self._handle is None else self._handle.fileno()

    def _close_handle(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _shut(self) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):  # not connected yet, or not any more
                self._handle.shutdown(socket.SHUT_RDWR)
