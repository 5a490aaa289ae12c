"""What the machine has left, measured: the impure half of the limit. controller.py decides by it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

from limits import cgroup
from limits.cpu import CpuShare
from limits.gpu import Gpus, load_nvml
from limits.pressure import Pressure
from limits.processes import Use, uses_of
from limits.sample import Gpu, Memory, Rate, Sample
from limits.words import counted

T = TypeVar("T")

LIMITS_AGAIN_AFTER_S = 10.0


class Sampler:
    """Looks at the processes it is told of, never at all of them: a walk of /proc costs tens of milliseconds.

    Each source is optional: which of them are there is said once, by `introduction`. One that fails is left out and the
    others go on; `say` takes a line when one begins to fail or works again. `gpu_ids`: the GPUs that count; none: all.
    """

    def __init__(
        self, say: Callable[[str], None], gpu_ids: Sequence[str] = (), *,
        proc: Path = Path("/proc"), load_gpus: Callable[[], Any] = load_nvml,
    ) -> None:  # fmt: skip
        self._say = say
        self._failing: set[str] = set()
        groups = self._found(lambda: cgroup.find(proc / "self")) or cgroup.Groups()
        self._limits = cgroup.MemoryLimits(groups.memory) if groups.memory else None
        quota = cgroup.CpuQuota(groups.cpu, groups.cpuacct) if groups.cpu and groups.cpuacct else None
        self._cpu = CpuShare(proc, quota)
        self._memory_pressure = self._pressure(proc, groups.memory, "memory")
        self._cpu_pressure = self._pressure(proc, None, "cpu")
        self._gpus = self._found(lambda: Gpus(load_gpus(), gpu_ids))
        self._refreshed_s = -LIMITS_AGAIN_AFTER_S
        self._introduction = self._introduced()

    def introduction(self) -> str:
        """One line on the sources that are there."""
        return self._introduction

    def model_changed(self) -> None:
        """A model server came or went."""
        if self._gpus is not None:
            self._gpus.forget_ready()

    def sample(self, own_pids: Iterable[int], model_pids: Iterable[int], in_flight: int, rate: Rate | None = None) -> Sample:
        """own_pids: the node's whole tree, whose CPU use is no reason to take less; model_pids: the part of it that is the model."""
        now_s, model = time.monotonic(), set(model_pids)
        self._refresh(now_s)
        of_model = self._try("the model's processes", lambda: uses_of(model, with_private=True)) or {}
        uses = {**(self._try("processes", lambda: uses_of(set(own_pids) - model)) or {}), **of_model}
        return Sample(
            now_s,
            in_flight,
            memory=(*self._machine(), *(self._cgroups() or ())),
            model_rss_bytes=_sum(of_model, lambda use: use.rss_bytes),
            model_private_bytes=_sum(of_model, lambda use: use.private_bytes),
            memory_stall_share=self._look_at("memory pressure", self._memory_pressure, now_s),
            others_cpu_share=self._try("CPU", lambda: self._cpu.look(now_s, uses)),
            cpu_wait_share=self._cpu_wait(now_s),
            gpus=self._look_at_gpus(),
            rate=rate,
        )

    # the sources

    def _machine(self) -> tuple[Memory, ...]:
        found = self._try("memory", psutil.virtual_memory)
        return (Memory("the machine", found.available, found.total),) if found else ()

    def _cgroups(self) -> list[Memory] | None:
        limits = self._limits
        return None if limits is None else self._try("the cgroup's memory", limits.look)

    def _cpu_wait(self, now_s: float) -> float | None:
        """By pressure or by a quota that is used up; the model's own threads wait for each other too, so that this alone
        says nothing: it is asked only where others use much."""
        pressure = self._look_at("CPU pressure", self._cpu_pressure, now_s)
        throttled = self._cpu.throttled_share
        return pressure if throttled is None else max(throttled, pressure or 0.0)

    def _look_at(self, name: str, pressure: Pressure | None, now_s: float) -> float | None:
        return None if pressure is None else self._try(name, lambda: pressure.look(now_s))

    def _look_at_gpus(self) -> tuple[Gpu, ...]:
        gpus = self._gpus
        return () if gpus is None else self._try("GPUs", gpus.look) or ()

    def _refresh(self, now_s: float) -> None:
        """Limits and quotas seldom change."""
        if now_s - self._refreshed_s < LIMITS_AGAIN_AFTER_S:
            return
        self._refreshed_s = now_s
        if self._limits is not None:
            self._try("the cgroup's memory", self._limits.refresh)
        self._try("the cgroup's CPU quota", self._cpu.refresh)

    # which there are

    def _pressure(self, proc: Path, group: cgroup.Group | None, what: str) -> Pressure | None:
        """The cgroup's own where there is one (version 2): others' shortage is not ours; else the machine's."""
        own = [group.folder / f"{what}.pressure"] if group is not None and group.version == 2 else []
        for path in (*own, proc / "pressure" / what):
            pressure = Pressure(path)
            if self._found(pressure.read) is not None:
                return pressure
        return None

    def _found(self, read: Callable[[], T]) -> T | None:
        """A source that is not there from the start is no failure."""
        try:
            return read()
        except Exception:  # a library's own kinds too, as NVML's; none of them is a reason not to serve
            return None

    def _introduced(self) -> str:
        self._refresh(time.monotonic())
        cores, limited = self._cpu.quota_cores, self._cgroups() or []
        sources = {
            "memory and CPU of the machine": True,
            " and ".join(f"{m.where} ({m.total_bytes >> 20:,} MiB)" for m in limited) or "a cgroup's memory limit": limited,
            f"a quota of {counted('core', cores)}" if cores else "a CPU quota": cores,
            "memory pressure": self._memory_pressure,
            "CPU pressure": self._cpu_pressure,
            counted("GPU", len(self._gpus or ())) if self._gpus else "a GPU": self._gpus,
        }
        there, lacking = ([name for name, found in sources.items() if bool(found) is wanted] for wanted in (True, False))
        return f"the limit follows {', '.join(there)}" + (f"; not there: {', '.join(lacking)}" if lacking else "")

    def _try(self, source: str, read: Callable[[], T]) -> T | None:
        """What `read` finds; None where it fails, which is said once and tried again with the next sample."""
        try:
            found = read()
        except Exception as error:  # NVML's errors have no other common ancestor, and no source is a reason to fail
            if source not in self._failing:
                self._failing.add(source)
                self._say(f"{source} cannot be measured and counts for nothing: {type(error).__name__}: {error}")
            return None
        if source in self._failing:
            self._failing.remove(source)
            self._say(f"{source} can be measured again")
        return found


def _sum(uses: dict[int, Use], of: Callable[[Use], int]) -> int | None:
    return sum(map(of, uses.values())) if uses else None
