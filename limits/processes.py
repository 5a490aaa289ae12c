"""CPU time and memory of some processes, each read with as few system calls as can be."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Use:
    """`born`: the kernel's start time, which tells a process from a later one of the same number."""

    born: int
    cpu_s: float
    rss_bytes: int
    private_bytes: int


def use_of(pid: int, *, with_private: bool = False) -> Use | None:
    """None where it has ended. See proc(5), /proc/PID/stat and statm: a command's name may hold brackets and blanks."""
    try:
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        shared = int(_read(f"/proc/{pid}/statm").split()[2]) if with_private else 0
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return None
    rss = int(fields[21])
    return Use(int(fields[19]), (int(fields[11]) + int(fields[12])) / _TICKS_PER_S, rss * _PAGE_BYTES, (rss - shared) * _PAGE_BYTES)


def is_stopped(pid: int) -> bool:
    """By SIGSTOP and the like: it does nothing until somebody sends SIGCONT."""
    try:
        return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[0] == b"T"
    except (OSError, IndexError):
        return False


def uses_of(pids: Iterable[int], *, with_private: bool = False) -> dict[int, Use]:
    """Of those that live."""
    found = {pid: use_of(pid, with_private=with_private) for pid in pids}
    return {pid: use for pid, use in found.items() if use is not None}


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
