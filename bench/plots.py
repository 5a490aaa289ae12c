"""The rows as pictures: CPU by process, latencies, and what grows with what. Needs requirement-bench.txt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.stats import Row

BAR = 0.4


def draw(rows: Sequence[Row], folder: Path) -> None:
    """A PNG for each unit of each scenario that has rows with a floor."""
    folder.mkdir(parents=True, exist_ok=True)
    _bars(rows, folder / "cpu.png", "CPU seconds for 1,000 requests", lambda row: row.unit.startswith("CPU"))
    _bars(rows, folder / "latency.png", "ms", lambda row: row.unit == "ms")
    _bars(rows, folder / "throughput.png", "answers a second", lambda row: row.unit == "/s")


def _bars(rows: Sequence[Row], path: Path, unit: str, wanted: Callable[[Row], bool]) -> None:
    """Measured beside its floor, a pair of bars for each row; the target as a line across its pair."""
    shown = [row for row in rows if wanted(row) and (row.floor is not None or row.target is not None)]
    if not shown:
        return
    figure = Figure(figsize=(11, 1.5 + 0.45 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = [float(n) for n in range(len(shown))]
    axes.barh([y - BAR / 2 for y in places], [row.measured for row in shown], BAR, label="node", color="tab:blue")
    axes.barh([y + BAR / 2 for y in places], [row.floor or 0.0 for row in shown], BAR, label="floor", color="lightgray")
    for y, row in zip(places, shown, strict=True):
        limit = row.target and (row.target.at_most if row.target.at_most is not None else row.target.at_least)
        if limit:
            axes.vlines(limit, y - BAR, y + BAR, color="tab:red")
    axes.set_yticks(places, [f"{row.scenario}, {row.broker}: {row.what}" for row in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"{unit} (red: the target)")
    axes.legend()
    figure.savefig(path, dpi=110)
