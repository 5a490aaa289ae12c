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
        self.fd, self._wake_fd = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._wake_fd, False)

    def put(self, item: Item) -> None:
        self._items.put(item)
        self.wake()

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._wake_fd, b"\0")

    def take(self) -> list[Item]:
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 65536)
        items: list[Item] = []
        with contextlib.suppress(queue.Empty):
            while True:
                items.append(self._items.get_nowait())
        return items
