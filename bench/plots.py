"""The rows as pictures. Needs requirement-bench.txt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.stats import Row
from bench.watch import BACKEND, BROKER, GATEWAY, LOAD, SUPERVISOR, UPSTREAM

BAR = 0.4
PARTS = (SUPERVISOR, BACKEND, GATEWAY, BROKER, UPSTREAM, LOAD)
WIDTH, ROW_HEIGHT, MARGIN = 11.0, 0.45, 1.5  # inches


def draw(rows: Sequence[Row], folder: Path) -> None:
    """PNGs: what was measured beside its floor, by unit; and where the CPU went, by process."""
    folder.mkdir(parents=True, exist_ok=True)
    _pairs(rows, folder / "cpu.png", "CPU seconds for 1,000 requests", lambda row: row.unit.startswith("CPU"))
    _pairs(rows, folder / "latency.png", "ms", lambda row: row.unit == "ms")
    _pairs(rows, folder / "throughput.png", "answers a second", lambda row: row.unit == "/s")
    _stacks(rows, folder / "cpu_by_process.png")


def _pairs(rows: Sequence[Row], path: Path, unit: str, wanted: Callable[[Row], bool]) -> None:
    """A pair of bars for each row; the target as a line across its pair."""
    shown = [row for row in rows if wanted(row) and (row.floor is not None or row.target is not None)]
    if not shown:
        return
    figure, axes, places = _axes([_named(row, row.what) for row in shown])
    axes.barh([y - BAR / 2 for y in places], [row.measured or 0.0 for row in shown], BAR, label="node", color="tab:blue")
    axes.barh([y + BAR / 2 for y in places], [row.floor or 0.0 for row in shown], BAR, label="floor", color="lightgray")
    for y, row in zip(places, shown, strict=True):
        limit = row.target and (row.target.at_most if row.target.at_most is not None else row.target.at_least)
        if limit:
            axes.vlines(limit, y - BAR, y + BAR, color="tab:red")
    axes.set_xlabel(f"{unit} (red: the target)")
    axes.legend()
    figure.savefig(path, dpi=110)


def _stacks(rows: Sequence[Row], path: Path) -> None:
    """One bar for each run whose CPU is known by process."""
    stacks: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        what, _, process = row.what.rpartition(": ")
        part = next((part for part in PARTS if process == part or process.startswith(f"{part} ")), None)
        if row.unit.startswith("CPU") and part is not None:
            stack = stacks[_named(row, what)]
            stack[part] = stack.get(part, 0.0) + (row.measured or 0.0)
    if not stacks:
        return
    figure, axes, places = _axes(stacks)
    left = [0.0] * len(places)
    for part in PARTS:
        widths = [stack.get(part, 0.0) for stack in stacks.values()]
        axes.barh(places, widths, 2 * BAR, left=left, label=f"{part}s" if part == BACKEND else part)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.set_xlabel("CPU seconds for 1,000 requests")
    axes.legend()
    figure.savefig(path, dpi=110)


def _named(row: Row, what: str) -> str:
    return f"{row.scenario}, {row.broker}: {what}"


def _axes(labels: Iterable[str]) -> tuple[Figure, Any, list[float]]:
    """A figure as high as its labels need, its axes, and the labels' places."""
    names = list(labels)
    figure = Figure(figsize=(WIDTH, MARGIN + ROW_HEIGHT * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = [float(n) for n in range(len(names))]
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    return figure, axes, places
