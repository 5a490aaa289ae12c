"""The pace of a busy loop: what comes within some milliseconds is worked on together.

A process that is woken for each token of a hundred streams works with cold caches, and pays four times what the tokens cost
when they come at once. So a loop with much in flight rests a little behind each turn that sent something; one with little in
flight never does.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from types import TracebackType

BUSY_FROM = 16  # in flight
TURN_EACH_S = 0.003
SELECTABLE_BELOW = 1024  # select(2); poll(2) knows only whole milliseconds
PASSES = 4  # of the event loop behind what was sent, before it rests: what has come wakes tasks, and these wake others


class Pace:
    """in_flight: to be counted by its owner. What comes by one of the ending descriptors ends a rest."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._turned_s = 0.0
        self._rests_soon = False
        self._ending_fds: set[int] = set()

    def ends_with(self, fd: int) -> None:
        if 0 <= fd < SELECTABLE_BELOW:
            self._ending_fds.add(fd)

    def ends_no_more_with(self, fd: int) -> None:
        self._ending_fds.discard(fd)

    def rest_soon(self) -> None:
        """Once what this turn of the loop has begun is done, whoever asks for it."""
        if not self._rests_soon:
            self._rests_soon = True
            self._pass(PASSES)

    def _pass(self, left: int) -> None:
        if left:
            asyncio.get_running_loop().call_soon(self._pass, left - 1)
        else:
            self.rest()

    def rest(self) -> None:
        """Behind a turn. Blocks the loop, for less than TURN_EACH_S."""
        self._rests_soon = False
        if self.in_flight >= BUSY_FROM and (left_s := self._turned_s + TURN_EACH_S - time.monotonic()) > 0:
            self._sleep(left_s)
        self._turned_s = time.monotonic()

    def _sleep(self, within_s: float) -> None:
        try:
            select.select(self._ending_fds, [], [], within_s)
        except OSError:  # one was closed, and whoever asked for it has not heard of that yet
            self._ending_fds = {fd for fd in self._ending_fds if _is_open(fd)}


class Awaited:
    """What a requester waits for before it has seen anything. Its descriptor ends rests from `by` to `over`. A context manager:
    over at its end, however that comes."""

    def __init__(self, pace: Pace) -> None:
        self._pace, self._fd = pace, -1

    def by(self, fd: int) -> None:
        self.over()
        self._fd = fd
        self._pace.ends_with(fd)

    def over(self) -> None:
        self._pace.ends_no_more_with(self._fd)
        self._fd = -1

    def __enter__(self) -> Awaited:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.over()


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
