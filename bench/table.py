"""The rows of a scenario, as they are known: their names, their units, their targets.

CPU is in seconds for 1,000 requests. The floor of a row is the same figure of bench/floor.py, run in the node's place right
before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from bench.plan import Plan
from bench.stage import Measured, Stage, Work
from bench.stats import Row, Target
from bench.watch import LOAD, UPSTREAM

CPU = "CPU s / 1,000"
API = Target(at_most=1.0, of_floor=1.3)


@dataclass(frozen=True)
class Length:
    """How long a window is, and the warm-up before it; how many points of a series are tried."""

    seconds: float
    warm_s: float
    is_quick: bool

    def plan(self, **more: object) -> Plan:
        return msgspec.convert({"seconds": self.seconds, "warm_s": self.warm_s} | more, Plan)

    def of(self, series: list[int]) -> list[int]:
        """All of them, or the last for a quick look."""
        return series[-1:] if self.is_quick else series


FULL, QUICK = Length(10.0, 3.0, False), Length(3.0, 1.0, True)


class Table:
    """Rows of one scenario on one broker."""

    def __init__(self, scenario: str, broker: str) -> None:
        self._scenario, self._broker = scenario, broker
        self.is_embedded = broker == "embedded"

    def row(self, what: str, unit: str, measured: float | None, floor: float | None = None, target: Target | None = None) -> Row:
        """A figure that is NaN could not be measured, which JSON has no number for."""
        return Row(self._scenario, self._broker, what, unit, _known(measured), _known(floor), target)

    def right(self, what: str, measured: Measured, floor: Measured | None = None) -> Row:
        failures = measured.report.failures
        words = f"{what}: answered rightly" + (f", not: {failures}" if failures else "")
        beside = None if floor is None else floor.report.right_percent
        return self.row(words, "%", measured.report.right_percent, beside, Target(at_least=100))

    def latency(self, what: str, measured: Measured, floor: Measured, percent: int, target: Target | None = None) -> Row:
        figures = measured.report.latency_ms.p(percent), floor.report.latency_ms.p(percent)
        return self.row(f"{what}: latency p{percent}", "ms", *figures, target)

    def api(self, what: str, found: Measured, floor: Measured, target: Target | None = API) -> Iterator[Row]:
        """`target`: for the node's CPU."""
        yield self.right(what, found, floor)
        yield self.row(f"{what}: answers", "/s", found.report.per_s, floor.report.per_s)
        yield self.latency(what, found, floor, 50)
        yield self.latency(what, found, floor, 99)
        yield self.row(f"{what}: node", CPU, found.node_cpu, floor.node_cpu, target)

    def added(self, what: str, work: Work, plan: Plan, stage: Stage, targets: dict[int, Target]) -> Iterator[Row]:
        """To the latency of the upstream when it is asked by the load itself, by percentile."""
        direct, floor = stage.directly(work, plan), stage.through_gateway(work, plan, floor=True)
        found = stage.through_gateway(work, plan)
        yield self.right(what, found, floor)
        for percent in (50, 99):
            alone_ms = direct.report.latency_ms.p(percent)
            figures = found.report.latency_ms.p(percent) - alone_ms, floor.report.latency_ms.p(percent) - alone_ms
            yield self.row(f"{what}: latency p{percent}, added", "ms", *figures, targets.get(percent))

    def cpu_by_process(self, what: str, measured: Measured) -> Iterator[Row]:
        for name, cpu_s in measured.cpu_per_1000.items():
            yield self.row(f"{what}: {name}", CPU, cpu_s)

    def memory_by_process(self, what: str, measured: Measured) -> Iterator[Row]:
        for name, memory in measured.memory.items():
            if name not in (UPSTREAM, LOAD):
                yield self.row(f"{what}: {name}, PSS", "MiB", memory.pss)
                yield self.row(f"{what}: {name}, RSS", "MiB", memory.rss)


def _known(figure: float | None) -> float | None:
    return None if figure is None or math.isnan(figure) else figure
