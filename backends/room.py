"""The memory that a model server finds when it starts, and what to say where it was too little."""

from __future__ import annotations

from collections.abc import Sequence

import psutil

from limits import cgroup
from limits.gpu import Gpus, load_nvml
from limits.sample import Memory
from limits.words import size

NO_ROOM = "the model does not fit into the memory"
ADVICE = "Take a smaller model or a smaller quantisation of it, lower MAX_PROCESS_NUM, which means fewer slots"


def memory_there(gpus: Sequence[str] = ()) -> list[Memory]:
    """The machine's, that of each cgroup that limits it, and that of these GPUs, where NVML tells it."""
    machine = psutil.virtual_memory()
    return [Memory("this machine", machine.available, machine.total), *_limited(), *(_of_gpus(gpus) if gpus else ())]


def oom_kills() -> int | None:
    """How many processes of this cgroup the kernel has killed for want of memory; None: it does not tell."""
    limits = _limits()
    return None if limits is None else limits.oom_kills()


def too_little(model_bytes: int, slots: int, context: int, found: list[Memory], *, on_gpu: bool) -> str:
    """What it was that did not fit, into what, and what to change. `found`: the memory before it started."""
    of_gpus = [memory for memory in found if memory.where.startswith("GPU")]
    if on_gpu and not of_gpus:
        return f"{NO_ROOM} of the GPU. {ADVICE}, or set GPU_IDS to a GPU that is free"
    room = min((of_gpus if on_gpu else [m for m in found if m not in of_gpus]), key=lambda memory: memory.available_bytes)
    file = f"its file has {size(model_bytes)}, and " if model_bytes else ""
    caches = f"{slots} slots of {context:,} tokens come on top" if context else "what it keeps for each request comes on top"
    there = f"{size(room.available_bytes)} of {size(room.total_bytes)} of memory were free in {room.where}"
    return f"{NO_ROOM} that there is: {file}{caches}; {there}. {ADVICE}, or give it more memory"


def _of_gpus(ids: Sequence[str]) -> list[Memory]:
    try:
        return [Memory(gpu.name, gpu.free_bytes, gpu.total_bytes) for gpu in Gpus(load_nvml(), ids).look()]
    except Exception:  # no library, or one of its many errors: it is only for a message
        return []


def _limits() -> cgroup.MemoryLimits | None:
    try:
        group = cgroup.find().memory
    except (OSError, ValueError):
        return None
    return None if group is None else cgroup.MemoryLimits(group)


def _limited() -> list[Memory]:
    limits = _limits()
    if limits is None:
        return []
    try:
        limits.refresh()
        return limits.look()
    except (OSError, ValueError):
        return []
