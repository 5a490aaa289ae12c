"""Pressure stall information: how long somebody had to wait for memory or the CPU (kernel: Documentation/accounting/psi.rst)."""

from __future__ import annotations

from pathlib import Path


class Pressure:
    """The share of the time since the last look in which at least one task waited. The kernel's own averages go over
    10 s and more, and are late by that."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: tuple[float, float] | None = None  # when, and the seconds of waiting until then

    def read(self) -> float:
        """Seconds of waiting since the machine started. Raises OSError, ValueError: not there, or switched off."""
        return _some_total_s(self._path.read_text())

    def look(self, now_s: float) -> float | None:
        """None at the first look. Raises as `read`."""
        waited_s = self.read()
        last, self._last = self._last, (now_s, waited_s)
        if last is None or now_s <= last[0]:
            return None
        return min(1.0, max(0.0, (waited_s - last[1]) / (now_s - last[0])))


def _some_total_s(text: str) -> float:
    """`some avg10=0.00 avg60=0.00 avg300=0.00 total=1234` → seconds; the total is in microseconds."""
    line = text.partition("\n")[0]
    if not line.startswith("some "):
        raise ValueError(f"not a pressure file: {line[:80]!r}")
    return int(line.rpartition("total=")[2]) / 1e6
