"""NVIDIA GPUs through NVML (the package nvidia-ml-py, its module pynvml), where there are any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from limits.sample import Gpu

# nvml.h, nvmlClocksEventReasons: what slows a GPU down for its own safety. A power cap is normal under full load.
SLOWED_BY = ((0x40, "heat"), (0x20, "heat"), (0x80, "the power supply"), (0x08, "heat or the power supply"))


class Gpus:
    """`ids`: numbers or UUIDs, as nvidia-smi shows them; none: all. `nvml`: the library, initialised here.

    The only place that speaks to NVML. Raises what the library raises: it is not there, or it failed."""

    def __init__(self, nvml: Any, ids: Sequence[str]) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        self._handles = {name: self._handle(name) for name in ids or map(str, range(nvml.nvmlDeviceGetCount()))}
        self._free_when_ready: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._handles)

    def forget_ready(self) -> None:
        """A model server came or went: what is free from now on is what it leaves."""
        self._free_when_ready.clear()

    def look(self) -> tuple[Gpu, ...]:
        return tuple(self._look_at(name, handle) for name, handle in self._handles.items())

    def _handle(self, name: str) -> Any:
        return self._nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else self._nvml.nvmlDeviceGetHandleByUUID(name)

    def _look_at(self, name: str, handle: Any) -> Gpu:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        free_when_ready = self._free_when_ready.setdefault(name, memory.free)
        reasons = self._optional("nvmlDeviceGetCurrentClocksThrottleReasons", handle) or 0
        busy = self._optional("nvmlDeviceGetUtilizationRates", handle)
        return Gpu(
            f"GPU {name}", memory.free, memory.total, free_when_ready,
            None if busy is None else busy.gpu / 100,
            self._optional("nvmlDeviceGetTemperature", handle, self._nvml.NVML_TEMPERATURE_GPU),
            next((words for bit, words in SLOWED_BY if reasons & bit), ""),
        )

    def _optional(self, function: str, *arguments: Any) -> Any:
        """None where this GPU does not tell: many a card and each MIG slice lacks one or the other."""
        try:
            return getattr(self._nvml, function)(*arguments)
        except self._nvml.NVMLError_NotSupported:
            return None


def load_nvml() -> Any:
    """Raises ImportError where the package is not installed."""
    import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]

    return pynvml
