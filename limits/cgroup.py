"""What the node's cgroups allow it: memory and CPU, version 2 and 1, the tightest on the path up.

Sources: the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst, proc(5) for mountinfo.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from limits.sample import Memory

NO_LIMIT_FROM = 1 << 60  # version 1 writes "no limit" as a number near 2**63


@dataclass(frozen=True)
class Group:
    """The node's own group in one hierarchy. `folder`: its files; `top`: where the hierarchy is mounted."""

    version: int
    folder: Path
    top: Path

    def levels(self) -> Iterator[Path]:
        """The group and all above it that can be seen from here."""
        folder = self.folder
        while True:
            yield folder
            if folder == self.top or folder == folder.parent:
                return
            folder = folder.parent

    def name(self, level: Path) -> str:
        return f"cgroup /{level.relative_to(self.top)}".replace("/.", "/")


@dataclass(frozen=True)
class Groups:
    """Of each controller the group that has it; None where no hierarchy does."""

    memory: Group | None = None
    cpu: Group | None = None
    cpuacct: Group | None = None  # version 1 counts CPU time apart


def find(proc: Path = Path("/proc/self")) -> Groups:
    """Where this process is. Raises OSError where there are no cgroups."""
    paths = _paths((proc / "cgroup").read_text())
    found: dict[str, Group] = {}
    for controllers, version, root, top in _mounts((proc / "mountinfo").read_text()):
        for name in controllers or _controllers_of(top):
            path = paths.get(name if version == 1 else "")
            if path is not None and (name not in found or version == 1):  # a controller is bound to one hierarchy
                found[name] = Group(version, _below(top, root, path), top)
    cpu = found.get("cpu")
    return Groups(found.get("memory"), cpu, found.get("cpuacct") or (cpu if cpu and cpu.version == 2 else None))


def _paths(text: str) -> dict[str, str]:
    """`5:cpu,cpuacct:/path` → the path for each controller; "" names version 2's."""
    found = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            found[name] = path
    return found


def _mounts(text: str) -> Iterator[tuple[list[str], int, str, Path]]:
    """Controllers (none named for version 2), version, the path that is mounted, and where."""
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        root, top = before.split()[3:5]
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            yield [], 2, root, Path(top)
        elif kind == "cgroup":
            yield options.split(","), 1, root, Path(top)


def _controllers_of(top: Path) -> list[str]:
    try:
        return (top / "cgroup.controllers").read_text().split()
    except OSError:
        return []


def _below(top: Path, root: str, path: str) -> Path:
    """In a container the mount may begin at its own group, while its path is told from the host's root."""
    if root != "/" and path.startswith(root):
        path = path[len(root) :]
    folder = top / path.lstrip("/")
    return folder if ".." not in path and folder.is_dir() else top


class MemoryLimits:
    """Memory of all levels that limit it. Limits are read again now and then only: they seldom change."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._limited: list[tuple[Path, int]] = []

    def refresh(self) -> None:
        """Which levels limit memory, and to what. Raises OSError where none can be read."""
        names = ("memory.max", "memory.high") if self._group.version == 2 else ("memory.limit_in_bytes",)
        found = []
        for level in self._group.levels():
            limits = [limit for name in names if (limit := _number(level / name)) is not None and limit < NO_LIMIT_FROM]
            if limits:
                found.append((level, min(limits)))
        self._limited = found

    def look(self) -> list[Memory]:
        """Raises OSError."""
        return [Memory(self._group.name(level), max(0, limit - self._used(level)), limit) for level, limit in self._limited]

    def _used(self, level: Path) -> int:
        """Without what the kernel takes back at once: file pages that nobody used lately."""
        is_2 = self._group.version == 2
        used = int((level / ("memory.current" if is_2 else "memory.usage_in_bytes")).read_text())
        return used - _entry((level / "memory.stat").read_text(), "inactive_file" if is_2 else "total_inactive_file")

    def oom_kills(self) -> int | None:
        """How many processes of the group, and of those below it, the kernel has killed for want of memory."""
        name = "memory.events" if self._group.version == 2 else "memory.oom_control"
        try:
            return _entry((self._group.folder / name).read_text(), "oom_kill")
        except (OSError, ValueError):
            return None


@dataclass(frozen=True)
class CpuUse:
    """Seconds since the group began: used by all in it, and stood still because its quota was used up."""

    used_s: float
    throttled_s: float


class CpuQuota:
    """The level that allows the least CPU, if any does."""

    def __init__(self, cpu: Group, cpuacct: Group) -> None:
        self._cpu, self._cpuacct = cpu, cpuacct
        self._level: Path | None = None
        self.cores: float | None = None  # None: no quota

    def refresh(self) -> None:
        quotas = [(cores, level) for level in self._cpu.levels() if (cores := self._cores(level)) is not None]
        self.cores, self._level = min(quotas, default=(None, None))

    def _cores(self, level: Path) -> float | None:
        if self._cpu.version == 2:
            quota, _, period = _text(level / "cpu.max").partition(" ")
            return float(quota) / float(period) if quota.isdigit() else None
        quota_us, period_us = _number(level / "cpu.cfs_quota_us"), _number(level / "cpu.cfs_period_us")
        return quota_us / period_us if quota_us and period_us and quota_us > 0 else None

    def look(self) -> CpuUse | None:
        """None where there is no quota. Raises OSError."""
        if self._level is None or self.cores is None:
            return None
        stat = dict(line.split() for line in (self._level / "cpu.stat").read_text().splitlines())
        if self._cpu.version == 2:
            return CpuUse(int(stat["usage_usec"]) / 1e6, int(stat.get("throttled_usec", 0)) / 1e6)
        used_ns = int((self._cpuacct.top / self._level.relative_to(self._cpu.top) / "cpuacct.usage").read_text())
        return CpuUse(used_ns / 1e9, int(stat["throttled_time"]) / 1e9)


def quota_cores(proc: Path = Path("/proc/self")) -> float | None:
    """The cores that the node's cgroups allow it; None: all, or unknown."""
    try:
        groups = find(proc)
        if groups.cpu is None or groups.cpuacct is None:
            return None
        quota = CpuQuota(groups.cpu, groups.cpuacct)
        quota.refresh()
        return quota.cores
    except (OSError, ValueError):
        return None


def _entry(text: str, name: str) -> int:
    """Of a file with a name and a number on each line; 0 where it is not there."""
    return int(f"\n{text}".partition(f"\n{name} ")[2].partition("\n")[0] or 0)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # the root of a hierarchy has no limits, and no such files
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.lstrip("-").isdigit() else None
