"""Ends of pipes, as channels are made of."""

from __future__ import annotations

import os


class End:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        if self._fd < 0:
            raise OSError("handle is closed")
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def pipe() -> tuple[End, End]:
    """The end to read from, and the end to write to."""
    reading, writing = os.pipe()
    return End(reading), End(writing)
