"""What threads and signal handlers tell the supervisor's loop: a queue, and a descriptor that wakes its wait."""

from __future__ import annotations

import contextlib
import os
import queue
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """`put` is safe from any thread and from a signal handler."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._is_woken = False  # a byte is in the pipe, or about to be: another would cost a system call, and say no more
        self.fd, self._wake_fd = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._wake_fd, False)

    def put(self, item: Item) -> None:
        self._items.put(item)
        self.wake()

    def leave(self, item: Item) -> None:
        """It is found by the next `take`, whenever that is."""
        self._items.put(item)

    def wake(self) -> None:
        if self._is_woken:
            return
        self._is_woken = True
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._wake_fd, b"\0")

    def take(self) -> list[Item]:
        if self._is_woken:
            with contextlib.suppress(BlockingIOError):  # else the byte is still to come, and is read then
                os.read(self.fd, 65536)
                self._is_woken = False  # before the items: what is put from now on wakes anew
        items: list[Item] = []
        while not self._items.empty():  # nobody else takes any
            items.append(self._items.get_nowait())
        return items
