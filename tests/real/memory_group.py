"""A cgroup with a memory limit of its own, version 2 or 1, below the one that this process is in. Needs the right to make one."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from limits import cgroup


class NoGroup(Exception):
    """No cgroup with a memory limit can be made here."""


@contextlib.contextmanager
def memory_group(limit_mib: int) -> Iterator[Path]:
    """Its folder. It is removed at the end, once its processes are gone. Raises NoGroup."""
    try:
        parent = cgroup.find().memory
        if parent is None:
            raise NoGroup("this machine has no memory controller")
        folder = parent.folder / f"workernode-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        folder.mkdir()
        name = "memory.max" if parent.version == 2 else "memory.limit_in_bytes"
        (folder / name).write_text(str(limit_mib << 20))
    except OSError as error:
        raise NoGroup(f"no memory cgroup can be made: {error}") from None
    try:
        yield folder
    finally:
        _remove(folder)


def used_mib(folder: Path) -> float:
    """What cannot be taken back."""
    group = cgroup.Group(2 if (folder / "memory.max").exists() else 1, folder, folder)
    limits = cgroup.MemoryLimits(group)
    limits.refresh()
    (memory,) = limits.look()
    return (memory.total_bytes - memory.available_bytes) / (1 << 20)


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.1)


def join(folder: Path, pid: int) -> None:
    """From now on its memory counts here, and that of what it starts."""
    (folder / "cgroup.procs").write_text(str(pid))
