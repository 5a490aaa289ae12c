"""CPU and memory by process."""

from __future__ import annotations

import time
from collections.abc import Mapping

import msgspec
import psutil

MIB = 1 << 20
NODE, GATEWAY, BROKER, UPSTREAM, LOAD, BENCH = "node", "gateway", "broker", "upstream", "load", "bench"
SUPERVISOR, BACKEND, ENDED = "supervisor", "backend", "ended children"


class Memory(msgspec.Struct, frozen=True):
    """In MiB. rss counts what processes share in each of them, pss once."""

    rss: float
    pss: float


class Watch:
    """Of programs by their role, each with its children, those that ended included. The node's are told apart: the
    supervisor, each backend, and together those that ended."""

    def __init__(self, programs: Mapping[str, int]) -> None:
        """`programs`: roles and process ids."""
        self._programs = {role: psutil.Process(pid) for role, pid in programs.items()}
        self._backends: dict[int, str] = {}  # names by process id
        self._begun_s, self._before, self._all_before_s = time.monotonic(), self._cpu_s(), _all_cpu_s()

    def used_s(self) -> dict[str, float]:
        """CPU seconds from the beginning to now."""
        before, after = self._before, self._cpu_s()
        ended_s = sum(before[name] for name in before.keys() - after.keys())  # is in `after`'s ended children, all of it
        used = {name: after[name] - before.get(name, 0.0) for name in after}
        if ENDED in used:
            used[ENDED] -= ended_s
        return {name: max(0.0, round(used_s, 3)) for name, used_s in used.items()}

    def others_percent(self, used_s: Mapping[str, float]) -> float:
        """How much of all its cores the machine's other processes have taken meanwhile: with much of it, nothing measured is to
        be believed. What the kernel does for nobody's account is left out."""
        others_s = _all_cpu_s() - self._all_before_s - sum(used_s.values())
        return max(0.0, 100 * others_s / (time.monotonic() - self._begun_s) / (psutil.cpu_count() or 1))

    def memory(self) -> dict[str, Memory]:
        found: dict[str, Memory] = {}
        for name, process in self._processes():
            try:
                full = process.memory_full_info()
            except psutil.NoSuchProcess:
                continue
            before = found.get(name, Memory(0, 0))
            found[name] = Memory(round(before.rss + full.rss / MIB, 1), round(before.pss + full.pss / MIB, 1))
        return found

    def _processes(self) -> list[tuple[str, psutil.Process]]:
        """With names that stay."""
        found = []
        for role, root in self._programs.items():
            children = root.children(recursive=True)
            if role != NODE or not any(_is_spawned(child) for child in children):
                found += [(role, process) for process in (root, *children)]
            else:
                found += [(SUPERVISOR, root), *((self._name(child), child) for child in children)]
        return found

    def _name(self, child: psutil.Process) -> str:
        if not _is_spawned(child):  # what Python starts beside spawned children
            return SUPERVISOR
        return self._backends.setdefault(child.pid, f"{BACKEND} {len(self._backends) + 1}")

    def _cpu_s(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, process in self._processes():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            found[name], ended_s = found.get(name, 0.0) + times.user + times.system, times.children_user + times.children_system
            told_apart = ENDED if name == SUPERVISOR else name
            found[told_apart] = found.get(told_apart, 0.0) + ended_s
        return found


def _all_cpu_s() -> float:
    """Of all processes, with what their children had that ended."""
    return sum(sum(process.info["cpu_times"][:4]) for process in psutil.process_iter(["cpu_times"]) if process.info["cpu_times"])


def _is_spawned(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def of_node(by_process: Mapping[str, float]) -> float:
    """What supervisor and children (or the floor, in their place) have together."""
    others = (GATEWAY, BROKER, UPSTREAM, LOAD)
    return sum(value for name, value in by_process.items() if name not in others)


def of_path(by_process: Mapping[str, float]) -> float:
    """The whole path of a request: node, gateway and broker."""
    return sum(value for name, value in by_process.items() if name not in (UPSTREAM, LOAD))
