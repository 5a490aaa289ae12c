"""What a node costs: `python -m bench [SCENARIO …]`, all where none is named.

Prints a table: each figure, the same figure of the floor (bench/floor.py: the bare parts in the node's place, in the same run),
their difference and ratio, the target and whether it is met. The mock upstream and the load are processes of their own, and
what they cost is in the table too; and so is what others took of the machine, as figures from a busy one mean little.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from bench import results
from bench.scenarios import SCENARIOS
from bench.stage import Stage
from bench.stats import Row, Target
from bench.table import FULL, QUICK, Length, Table

QUIET = Target(at_most=5)


def run(scenarios: list[str], broker: str, length: Length, json: Path | None) -> list[Row]:
    rows: list[Row] = []
    with Stage(broker) as stage:
        for name in scenarios:
            found = []
            for row in _rows(stage, name, Table(name, broker), length):
                print(results.line(row), flush=True)
                found.append(row)
            if json is not None:
                results.add(json, found)
            rows += found
    return rows


def _rows(stage: Stage, name: str, table: Table, length: Length) -> Iterator[Row]:
    """The scenario's, and how quiet the machine was."""
    stage.others_percent = 0.0
    yield from SCENARIOS[name](stage, table, length)
    yield table.row("taken by others in a window, at most", "% of CPU", stage.others_percent, target=QUIET)


def main() -> int:
    """Returns 1 where a target is missed."""
    given = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that what was started is ended
    print(results.heading(), flush=True)
    rows: list[Row] = []
    for broker in ("embedded", "real"):
        if given.broker in (broker, "both"):
            rows += run(given.scenarios or list(SCENARIOS), broker, QUICK if given.quick else FULL, given.json)
    if given.plots:
        from bench.plots import draw  # only here: who draws nothing need not have its library

        draw(results.read(given.json) if given.json else rows, given.plots)
    missed = [row for row in rows if row.verdict == "NOT MET"]
    print(f"{sum(row.verdict == 'met' for row in rows)} targets met, {len(missed)} not")
    return 1 if missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = "; ".join(f"{name}: {(found.__doc__ or '').splitlines()[0]}" for name, found in SCENARIOS.items())
    parser.add_argument("scenarios", nargs="*", choices=[[], *SCENARIOS], metavar="SCENARIO", help=names)
    parser.add_argument("--broker", choices=["embedded", "real", "both"], default="embedded")
    parser.add_argument("--quick", action="store_true", help="short windows: whether it works, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the rows to those in there; a scenario's own are replaced")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw all rows, as PNG")
    return parser


if __name__ == "__main__":
    sys.exit(main())
