"""One look at the machine, as plain data: what sampling.py measures and controller.py decides by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Memory:
    """What can still be had without swapping or being killed in one place: the machine, or a cgroup with a limit."""

    where: str  # for people: "the machine", "cgroup /kubepods/pod1"
    available_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Gpu:
    """`free_when_ready_bytes`: when its model server had just loaded: many take nearly all of a GPU's memory at once, so
    that little left is no shortage, but less and less is. `slowed_by`: why its hardware slows it down, "" where it does not."""

    name: str
    free_bytes: int
    total_bytes: int
    free_when_ready_bytes: int
    busy_share: float | None = None
    temperature_c: int | None = None
    slowed_by: str = ""


@dataclass(frozen=True)
class Rate:
    """Output of all model servers together between two times (monotonic)."""

    tokens_per_s: float
    from_s: float
    to_s: float


@dataclass(frozen=True)
class Sample:
    """None or empty: that source is not there, failed, or has no earlier look to compare with. Shares are from 0 to 1,
    and of the time since the last look."""

    at_s: float  # monotonic
    in_flight: int
    memory: tuple[Memory, ...] = ()
    model_rss_bytes: int | None = None
    model_private_bytes: int | None = None  # without files that are mapped, as weights are
    memory_stall_share: float | None = None  # in which somebody waited for memory (PSI)
    others_cpu_share: float | None = None  # of the CPU that is ours to use: everybody's use but our own
    cpu_wait_share: float | None = None  # in which somebody waited for the CPU (PSI, or throttled by a quota)
    gpus: tuple[Gpu, ...] = ()
    rate: Rate | None = None
