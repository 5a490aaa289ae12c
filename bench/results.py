"""The table as text, and its rows in a file. `python -m bench.results FILE` prints those in the file as Markdown."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec

from bench.stats import Row

_WIDTHS = (58, 14, 9, 9, 10, 6)


def heading() -> str:
    return _columns("", "unit", "measured", "floor", "difference", "ratio") + "  target"


def line(row: Row) -> str:
    named = f"{row.scenario}, {row.broker}: {row.what}"
    target = f"  {row.target}: {row.verdict}" if row.target else ""
    return _columns(named, row.unit, *_figures(row)) + target


def markdown(rows: Iterable[Row]) -> str:
    """Those with a floor or a target."""
    lines = ["| scenario | figure | unit | measured | floor | difference | ratio | target |", "|---|---|---|--:|--:|--:|--:|---|"]
    for row in rows:
        if row.floor is not None or row.target is not None:
            target = f"{row.target}: {row.verdict}" if row.target else ""
            cells = [f"{row.scenario}, {row.broker}", row.what, row.unit, *_figures(row), target]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _figures(row: Row) -> tuple[str, str, str, str]:
    """Measured, floor, difference, ratio."""
    if row.measured is None:
        return "none", "" if row.floor is None else f"{row.floor:,.2f}", "", ""
    measured = f"{row.measured:,.2f}"
    if row.floor is None:
        return measured, "", "", ""
    return measured, f"{row.floor:,.2f}", f"{row.measured - row.floor:+,.2f}", f"{row.measured / row.floor:.2f}" if row.floor > 0 else ""


def _columns(named: str, *figures: str) -> str:
    first, *others = _WIDTHS
    return f"{named:<{first}}" + "".join(f"{figure:>{width + 1}}" for figure, width in zip(figures, others, strict=True))


def read(path: Path) -> list[Row]:
    return msgspec.json.decode(path.read_bytes(), type=list[Row]) if path.exists() else []


def add(path: Path, rows: list[Row]) -> None:
    """Those of the same scenarios on the same brokers are replaced."""
    replaced = {(row.scenario, row.broker) for row in rows}
    kept = [row for row in read(path) if (row.scenario, row.broker) not in replaced]
    path.write_bytes(msgspec.json.format(msgspec.json.encode(kept + rows), indent=1))


if __name__ == "__main__":
    print(markdown(read(Path(sys.argv[1]))))
