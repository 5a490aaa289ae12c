"""Streams that flow, many of them on one thread.

A thread for each token's way costs more than the token: it is woken, waits for the interpreter's lock, and works with cold
caches. So a stream's own thread sees to its beginning and its end, and rests in between.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

LOOK_EACH_S = 0.1  # for those whose time is over


class Stream(Protocol):
    """due_s: monotonic; by then it has its turn though nothing has come."""

    due_s: float

    def fileno(self) -> int:
        """What it waits to read from: open, and nothing else, until it is over."""

    def turn(self) -> bool:
        """Whether it is over. Passes on what has come, and does not wait for more. Raises what ends it."""


@dataclass(eq=False)
class _Carried:
    stream: Stream
    error: BaseException | None = None
    over: threading.Event = field(default_factory=threading.Event)


class Streams:
    """For streams that share their fate: what one of them waits for while it sends, all wait for.

    together: called behind the turns of all that had something at once."""

    def __init__(self, together: Callable[[], None]) -> None:
        self._together = together
        self._epoll = select.epoll()
        self._carried: dict[int, _Carried] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self.is_closed = False

    def carry(self, stream: Stream) -> None:
        """Returns once it is over, or at once where nothing is carried any more. Raises what its turn raises."""
        carried, number = _Carried(stream), stream.fileno()
        with self._changed:
            if self.is_closed:
                return
            self._carried[number] = carried
            self._epoll.register(number, select.EPOLLIN)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="streams", daemon=True)
                self._thread.start()
            self._changed.notify()
        carried.over.wait()
        if carried.error is not None:
            raise carried.error

    def close(self) -> None:
        """What is carried goes on to its end; more is not taken."""
        with self._changed:
            self.is_closed = True
            self._changed.notify()

    def is_turning(self) -> bool:
        """Whether the caller is in some stream's turn."""
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        look_at_s = 0.0
        while self._is_needed():
            for number, _ in self._epoll.poll(LOOK_EACH_S):
                self._take_turn(number)
            if (now_s := time.monotonic()) >= look_at_s:
                look_at_s = now_s + LOOK_EACH_S
                for number, carried in list(self._carried.items()):
                    if carried.stream.due_s < now_s:
                        self._take_turn(number)
            self._together()

        self._epoll.close()

    def _is_needed(self) -> bool:
        """Waits while there are no streams. False: there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._carried or self.is_closed)
            return bool(self._carried)

    def _take_turn(self, number: int) -> None:
        carried = self._carried[number]
        try:
            if not carried.stream.turn():
                return
        except BaseException as error:  # its own thread knows what to make of it
            carried.error = error
        self._epoll.unregister(number)
        with self._changed:
            del self._carried[number]
        carried.over.set()
