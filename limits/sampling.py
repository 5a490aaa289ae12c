"""What the machine has left, measured: the only impure half of the limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import psutil

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One look at the machine. None: that source failed, or has no earlier look to compare with."""

    at_s: float  # monotonic
    in_flight: int
    available_memory_bytes: int | None = None  # what can be had without swapping (MemAvailable)
    total_memory_bytes: int | None = None
    model_rss_bytes: int | None = None
    others_cpu_share: float | None = None  # 0 to 1, of all cores, since the last look: everybody's use but ours


@dataclass
class _CpuReading:
    busy_s: float
    total_s: float
    own_s: dict[int, float] = field(default_factory=dict)


class Sampler:
    """Looks at the processes it is told of, never at all of them: a walk of /proc costs tens of milliseconds.

    A source that fails is left out and the others go on; `say` takes a line when one begins to fail or works again.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._processes: dict[int, psutil.Process] = {}
        self._last_cpu: _CpuReading | None = None
        self._failing: set[str] = set()

    def sample(self, own_pids: Iterable[int], model_pids: Iterable[int], in_flight: int) -> Sample:
        """own_pids: the node's whole tree, whose CPU use is no reason to take less; model_pids: the part of it that is the model."""
        memory = self._try("memory", psutil.virtual_memory)
        return Sample(
            at_s=time.monotonic(),
            in_flight=in_flight,
            available_memory_bytes=memory.available if memory else None,
            total_memory_bytes=memory.total if memory else None,
            model_rss_bytes=self._try("the model's memory", lambda: self._rss_bytes(model_pids)),
            others_cpu_share=self._try("CPU", lambda: self._others_cpu_share(set(own_pids) | set(model_pids))),
        )

    def _try(self, source: str, read: Callable[[], T]) -> T | None:
        """What `read` finds; None where it fails, which is said once and tried again with the next sample."""
        try:
            found = read()
        except (psutil.Error, OSError, ValueError, RuntimeError, NotImplementedError) as error:
            if source not in self._failing:
                self._failing.add(source)
                self._say(f"{source} cannot be measured and does not count: {error}")
            return None
        if source in self._failing:
            self._failing.remove(source)
            self._say(f"{source} can be measured again")
        return found

    def _process(self, pid: int) -> psutil.Process | None:
        """Kept from look to look; None where it has ended. A pid given to another process meanwhile is another process."""
        known = self._processes.get(pid)
        if known is not None and known.is_running():
            return known
        self._processes.pop(pid, None)
        try:
            self._processes[pid] = psutil.Process(pid)
        except psutil.NoSuchProcess:
            return None
        return self._processes[pid]

    def _rss_bytes(self, pids: Iterable[int]) -> int:
        total = 0
        for process in filter(None, map(self._process, pids)):
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total

    def _others_cpu_share(self, own_pids: set[int]) -> float | None:
        now, last = self._read_cpu(own_pids), self._last_cpu
        self._last_cpu = now
        self._processes = {pid: process for pid, process in self._processes.items() if pid in own_pids}
        if last is None or now.total_s <= last.total_s:
            return None
        # A process not seen before counts with all of its life: it began since the last look.
        own_s = sum(spent - last.own_s.get(pid, 0.0) for pid, spent in now.own_s.items())
        others_s = now.busy_s - last.busy_s - own_s
        return min(1.0, max(0.0, others_s / (now.total_s - last.total_s)))

    def _read_cpu(self, own_pids: set[int]) -> _CpuReading:
        times = psutil.cpu_times()
        # Guests' time is counted in `user` already (proc(5)); not every system has every field.
        total_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        reading = _CpuReading(total_s - times.idle - getattr(times, "iowait", 0.0), total_s)
        for pid in own_pids:
            process = self._process(pid)
            try:
                spent = process.cpu_times() if process else None
            except psutil.NoSuchProcess:
                continue
            if spent:
                reading.own_s[pid] = spent.user + spent.system
        return reading
