"""The controller's readings, for people."""

from __future__ import annotations

from limits.sample import Memory, Sample

MIB, GIB = 2**20, 2**30


def memory_words(sample: Sample, memory: Memory, below_bytes: float | None = None, fall_per_s: float = 0.0) -> str:
    below = f", less than {size(below_bytes)}" if below_bytes else f", and {size(fall_per_s)} less each second" if fall_per_s else ""
    model = f"; the model holds {size(sample.model_rss_bytes)}" if sample.model_rss_bytes else ""
    return f"{size(memory.available_bytes)} of {size(memory.total_bytes)} of memory are available in {memory.where}{below}{model}"


def readings(sample: Sample) -> str:
    words = "".join(f", {size(m.available_bytes)} of memory in {m.where}" for m in sample.memory)
    if sample.others_cpu_share is not None:
        words += f", other programs at {percent(sample.others_cpu_share)} of the CPU"
    return words


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def size(size_bytes: float) -> str:
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:.0f} MiB"


def counted(what: str, count: float) -> str:
    return f"{count:g} {what}" + ("s" if count != 1 else "")
