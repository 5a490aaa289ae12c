"""What is measured, and what it has to come to. Each scenario yields rows of the table as they are known.

CPU is in seconds for 1,000 requests. The floor of a row is the same figure of bench/floor.py, run in the node's place right
before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.load import Plan
from bench.stage import Measured, Stage, Work
from bench.stats import Row, Target
from bench.watch import LOAD, UPSTREAM

CPU = "CPU s / 1,000"


@dataclass(frozen=True)
class Length:
    """How long a window is, and the warm-up before it; how many points of a series are tried."""

    seconds: float
    warm_s: float
    is_quick: bool

    def plan(self, **more: object) -> Plan:
        given = {"url": "", "model": "", "expect": "", "seconds": self.seconds, "warm_s": self.warm_s} | more
        return Plan(**given)  # type: ignore[arg-type]

    def of(self, series: list[int]) -> list[int]:
        """All of them, or two for a quick look."""
        return series[-2:] if self.is_quick else series


FULL, QUICK = Length(10.0, 3.0, False), Length(3.0, 1.0, True)


class Table:
    """Rows of one scenario on one broker."""

    def __init__(self, scenario: str, broker: str) -> None:
        self._scenario, self._broker = scenario, broker
        self.is_embedded = broker == "embedded"

    def row(self, what: str, unit: str, measured: float, floor: float | None = None, target: Target | None = None) -> Row:
        return Row(self._scenario, self._broker, what, unit, measured, floor, target)

    def right(self, what: str, measured: Measured, target: float = 100.0) -> Row:
        return self.row(f"{what}: answered rightly", "%", measured.report.right_percent, target=Target(at_least=target))

    def latency(self, what: str, measured: Measured, floor: Measured, percent: int) -> Row:
        return self.row(f"{what}: latency p{percent}", "ms", measured.report.latency_ms.p(percent), floor.report.latency_ms.p(percent))

    def cpu_by_process(self, what: str, measured: Measured) -> Iterator[Row]:
        for name, cpu_s in measured.cpu_per_1000.items():
            yield self.row(f"{what}: {name}", CPU, cpu_s)

    def memory_by_process(self, what: str, measured: Measured) -> Iterator[Row]:
        for name, memory in measured.memory.items():
            if name not in (UPSTREAM, LOAD):
                yield self.row(f"{what}: {name}, PSS", "MiB", memory.pss)
                yield self.row(f"{what}: {name}, RSS", "MiB", memory.rss)


Scenario = Callable[[Stage, Table, Length], Iterator[Row]]


def demo(stage: Stage, table: Table, length: Length) -> Iterator[Row]:
    """The fixed answer through the whole path, in a closed loop: what everything around a model costs."""
    for in_flight in length.of([1, 16, 128, 64]):
        what, plan = f"{in_flight} in flight", length.plan(in_flight=in_flight)
        floor = stage.through_gateway(Work(), plan, floor=True)
        found = stage.through_gateway(Work(), plan)
        is_main = in_flight == 64
        yield table.right(what, found)
        fast = Target(at_least=500) if is_main and table.is_embedded else None
        yield table.row(f"{what}: answers", "/s", found.report.per_s, floor.report.per_s, fast)
        yield table.latency(what, found, floor, 50)
        yield table.latency(what, found, floor, 99)
        yield table.row(f"{what}: node", CPU, found.node_cpu, floor.node_cpu, Target(at_most=0.6) if is_main else None)
        whole = Target(at_most=2.0) if is_main and table.is_embedded else None
        yield table.row(f"{what}: node, gateway and broker", CPU, found.path_cpu, floor.path_cpu, whole)
        if is_main:
            yield from table.cpu_by_process(what, found)
            yield from table.memory_by_process(what, found)


def api(stage: Stage, table: Table, length: Length) -> Iterator[Row]:
    """One upstream call, one answer, one record; 128 in flight, or 64 where the upstream is at once."""
    for latency_ms, in_flight in ((0, 64), (100, 64), (1500, 128))[: 2 if length.is_quick else 3]:
        work, what = Work(f"mock?latency={latency_ms}ms"), f"upstream of {latency_ms} ms, {in_flight} in flight"
        plan = length.plan(in_flight=in_flight)
        floor = stage.through_gateway(work, plan, floor=True)
        found = stage.through_gateway(work, plan)
        yield table.right(what, found)
        yield table.row(f"{what}: answers", "/s", found.report.per_s, floor.report.per_s)
        yield table.latency(what, found, floor, 50)
        yield table.latency(what, found, floor, 99)
        yield table.row(f"{what}: node", CPU, found.node_cpu, floor.node_cpu, Target(at_most=1.0, of_floor=1.3))
        yield table.row(f"{what}: node, gateway and broker", CPU, found.path_cpu, floor.path_cpu)
        yield from table.cpu_by_process(what, found)


def streams(stage: Stage, table: Table, length: Length) -> Iterator[Row]:
    """128 streams at once of 200 tokens, 50 a second, each token sent when it came."""
    work = Work("mock?latency=200ms&gap=20ms&tokens=200", stream=True)
    plan = length.plan(in_flight=128, warm_s=5.0, seconds=2.0 * length.seconds)  # each takes 4.2 s
    direct = stage.directly(work, plan)
    floor = stage.through_gateway(work, plan, floor=True)
    found = stage.through_gateway(work, plan)
    yield table.right("128 streams", found)
    first, alone = (found.report.first_token_ms.p(50), floor.report.first_token_ms.p(50)), direct.report.first_token_ms.p(50)
    yield table.row("time to first token p50, added", "ms", first[0] - alone, first[1] - alone, Target(at_most=4))
    gap, alone = (found.report.gap_ms.p(99), floor.report.gap_ms.p(99)), direct.report.gap_ms.p(99)
    yield table.row("gap between tokens p99, added", "ms", gap[0] - alone, gap[1] - alone, Target(at_most=10))
    yield table.row("gap between tokens p99, upstream and load alone", "ms", alone)
    yield table.row("node, of streams", CPU, found.node_cpu, floor.node_cpu, Target(at_most=12))
    yield table.row("node, gateway and broker, of streams", CPU, found.path_cpu, floor.path_cpu)
    yield from table.cpu_by_process("128 streams", found)


SCENARIOS: dict[str, Scenario] = {"demo": demo, "api": api, "streams": streams}
