"""How much of the CPU that is ours to use others use."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from limits.cgroup import CpuQuota, CpuUse, quota_cores
from limits.processes import Use

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# /proc/stat, proc(5): user nice system idle iowait irq softirq steal. `nice` gives way; guests' time is in `user`.
_BUSY_FIELDS = (0, 2, 5, 6, 7)


def usable_cores() -> int:
    """Which this process may run on, or so many as its cgroups' quota is worth; at least 1."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, int(quota_cores() or allowed)))


@dataclass(frozen=True)
class _Reading:
    at_s: float
    busy_s: float
    quota: CpuUse | None
    own_s: dict[tuple[int, int], float] = field(default_factory=dict)  # by pid and birth


class CpuShare:
    """Of the machine's cores those count that this process may run on. With a quota, others inside its cgroup count, and
    those outside only as far as they leave less than the quota."""

    def __init__(self, proc: Path, quota: CpuQuota | None) -> None:
        self._stat, self._quota = proc / "stat", quota
        self._last: _Reading | None = None
        self.throttled_share: float | None = None  # of the quota, lost because it was used up; None without one

    @property
    def quota_cores(self) -> float | None:
        return None if self._quota is None else self._quota.cores

    def refresh(self) -> None:
        if self._quota is not None:
            self._quota.refresh()

    def look(self, now_s: float, own: dict[int, Use]) -> float | None:
        """Others' share since the last look, None at the first. Raises OSError, ValueError, KeyError."""
        cores = os.sched_getaffinity(0)
        now, last = self._read(now_s, own, cores), self._last
        self._last = now
        if last is None or now_s <= last.at_s:
            return None
        elapsed_s = now_s - last.at_s
        # A process not seen before counts with all of its life: it began since the last look.
        own_s = sum(spent - last.own_s.get(key, 0.0) for key, spent in now.own_s.items())
        others_cores = max(0.0, now.busy_s - last.busy_s - own_s) / elapsed_s
        quota_cores = min(self.quota_cores or len(cores), len(cores))
        lost = quota_cores - min(quota_cores, max(0.0, len(cores) - others_cores))
        self.throttled_share = None
        if now.quota is not None and last.quota is not None:
            inside_s = now.quota.used_s - last.quota.used_s - own_s
            lost = max(lost, inside_s / elapsed_s)
            throttled_s = (now.quota.throttled_s - last.quota.throttled_s) / max(1.0, quota_cores)
            self.throttled_share = min(1.0, max(0.0, throttled_s / elapsed_s))
        return min(1.0, max(0.0, lost / quota_cores))

    def _read(self, now_s: float, own: dict[int, Use], cores: set[int]) -> _Reading:
        quota = None if self._quota is None else self._quota.look()
        return _Reading(now_s, _busy_s(self._stat, cores), quota, {(pid, use.born): use.cpu_s for pid, use in own.items()})


def _busy_s(stat: Path, cores: set[int]) -> float:
    """Of these cores, in seconds since the machine started."""
    with stat.open("rb") as file:
        text = file.read(256 * (os.cpu_count() or 1) + 256)
    lines = text.split(b"\nintr", 1)[0].split(b"\n")
    wanted = [lines[0]] if len(cores) == len(lines) - 1 else [line for line in lines[1:] if int(line.split(b" ", 1)[0][3:]) in cores]
    return sum(int(fields[n]) for line in wanted for fields in (line.split()[1:],) for n in _BUSY_FIELDS) / _TICKS_PER_S
