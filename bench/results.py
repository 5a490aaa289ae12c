"""The table as text, and its rows in a file."""

from __future__ import annotations

from pathlib import Path

import msgspec

from bench.stats import Row

_WIDTHS = (58, 14, 9, 9, 10, 6)


def heading() -> str:
    return _columns("", "unit", "measured", "floor", "difference", "ratio") + "  target"


def line(row: Row) -> str:
    floor, difference, ratio = "", "", ""
    if row.floor is not None:
        floor, difference = f"{row.floor:,.2f}", f"{row.measured - row.floor:+,.2f}"
        ratio = f"{row.measured / row.floor:.2f}" if row.floor > 0 else ""
    named = f"{row.scenario}, {row.broker}: {row.what}"
    target = f"  {row.target}: {row.verdict}" if row.target else ""
    return _columns(named, row.unit, f"{row.measured:,.2f}", floor, difference, ratio) + target


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
