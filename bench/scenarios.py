"""What is measured, and what it has to come to: each scenario yields rows of the table as they are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench.lifetimes import idle, start
from bench.plan import Plan
from bench.stage import Measured, Stage, Work
from bench.stats import Row, Target, spread
from bench.table import CPU, Length, Table
from bench.watch import BROKER

Scenario = Callable[[Stage, Table, Length], Iterator[Row]]
OPENED_AFTER_S = 8.0  # a remote node opens by and by, and what waited meanwhile is worked off after that


def demo(stage: Stage, table: Table, length: Length) -> Iterator[Row]:
    """The fixed answer through the whole path, in a closed loop: what everything around a model costs."""
    for in_flight in length.of([1, 16, 128, 64]):
        what, plan = f"{in_flight} in flight", length.plan(in_flight=in_flight)
        floor = stage.through_gateway(Work(), plan, floor=True)
        found = stage.through_gateway(Work(), plan)
        is_main = in_flight == 64
        yield table.right(what, found, floor)
        fast = Target(at_least=500) if is_main and table.is_embedded else None
        yield table.row(f"{what}: answers", "/s", found.report.per_s, floor.report.per_s, fast)
        yield table.latency(what, found, floor, 50)
        yield table.latency(what, found, floor, 99)
        yield table.row(f"{what}: node", CPU, found.node_cpu, floor.node_cpu, Target(at_most=0.6) if is_main else None)
        whole = Target(at_most=2.0) if is_main and table.is_embedded else None
        yield table.row(f"{what}: node, gateway and broker", CPU, found.path_cpu, floor.path_cpu, whole)
        if is_main:
            yield from promises(stage, table, Work(), plan, what, found)
            yield from table.cpu_by_process(what, found)
            yield from table.memory_by_process(what, found)


def api(stage: Stage, table: Table, length: Length) -> Iterator[Row]:
    """One upstream call, one answer over a link, one record, for upstreams of 0, 100 and 1500 ms."""
    for latency_ms, in_flight in ((0, 64), (100, 64), (1500, 128))[: 2 if length.is_quick else 3]:
        work, what = Work(f"mock?latency={latency_ms}ms"), f"upstream of {latency_ms} ms, {in_flight} in flight"
        plan = length.plan(in_flight=in_flight)
        floor = stage.through_gateway(work, plan, floor=True)
        found = stage.through_gateway(work, plan)
        yield from table.api(what, found, floor)
        yield from promises(stage, table, work, plan, what, found)
        yield table.row(f"{what}: node, gateway and broker", CPU, found.path_cpu, floor.path_cpu)
        yield from table.cpu_by_process(what, found)


def promises(stage: Stage, table: Table, work: Work, plan: Plan, what: str, found: Measured) -> Iterator[Row]:
    """What has to be done whoever does it: the floor with a node's promises in the fewest lines."""
    least = stage.through_gateway(work, plan, promises=True)
    yield table.right(f"{what}, floor with a node's promises", least)
    yield table.row(f"{what}: node, beside a floor with a node's promises", CPU, found.node_cpu, least.node_cpu)


def alone(stage: Stage, table: Table, length: Length) -> Iterator[Row]:
    """No gateway: requests straight from the queue, answers over a link, or by POST as to any other service."""
    for answers in ("link", "post"):
        work, plan = Work("mock?latency=100ms"), length.plan(in_flight=64, answers=answers)
        floor = stage.straight(work, plan, floor=True)
        found = stage.straight(work, plan)
        yield from table.api(f"answers by {answers}, upstream of 100 ms, 64 in flight", found, floor)


def streams(stage: Stage, table: Table, length: Length) -> Iterator[Row]:
    """128 streams at once of 200 tokens, 50 a second, each token sent when it came."""
    work = Work("mock?latency=200ms&gap=20ms&tokens=200", stream=True, slots=192)
    plan = length.plan(in_flight=128, warm_s=6.0, seconds=2.0 * length.seconds)  # each takes 4.2 s
    direct = stage.directly(work, plan)
    floor = stage.through_gateway(work, plan, floor=True)
    found = stage.through_gateway(work, plan)
    yield table.right("128 streams", found, floor)
    first, alone = (found.report.first_token_ms.p(50), floor.report.first_token_ms.p(50)), direct.report.first_token_ms.p(50)
    yield table.row("time to first token p50, added", "ms", first[0] - alone, first[1] - alone, Target(at_most=4))
    gap, alone = (found.report.gap_ms.p(99), floor.report.gap_ms.p(99)), direct.report.gap_ms.p(99)
    yield table.row("gap between tokens p99, added", "ms", gap[0] - alone, gap[1] - alone, Target(at_most=10))
    yield table.row("gap between tokens p99, upstream and load alone", "ms", alone)
    yield table.row("node, of streams", CPU, found.node_cpu, floor.node_cpu, Target(at_most=12))
    yield table.row("node, gateway and broker, of streams", CPU, found.path_cpu, floor.path_cpu)
    yield from promises(stage, table, work, plan, "128 streams", found)
    yield from table.cpu_by_process("128 streams", found)


def latency(stage: Stage, table: Table, length: Length) -> Iterator[Row]:
    """What is added to the upstream's own latency: at one in flight, and at 64 and 70 % of what can be had."""
    work, plan = Work("mock?latency=20ms"), length.plan(in_flight=1, seconds=2 * length.seconds)
    targets = {50: Target(at_most=3), 99: Target(at_most=8)} if table.is_embedded else {}
    yield from table.added("1 in flight", work, plan, stage, targets)
    records = stage.straight(work, plan, records=True).durations_ms
    ours_ms = [sum(record[name] or 0.0 for name in ("waited", "prepared", "delivered")) for record in records]
    what = "node alone, 1 in flight: received → upstream sent, upstream done → answer taken, p50"
    yield table.row(what, "ms", spread(ours_ms).p(50), target=Target(at_most=0.7))
    capacity = stage.through_gateway(Work("mock?latency=100ms"), length.plan(in_flight=128)).report.per_s
    rate = 0.7 * capacity
    yield table.row("capacity: 128 in flight, upstream of 100 ms", "/s", capacity)
    work, plan = Work(f"mock?latency={64 / rate:.3f}s"), length.plan(rate=rate, warm_s=OPENED_AFTER_S)
    targets = {99: Target(at_most=25)} if table.is_embedded else {}
    yield from table.added("64 in flight at 70 % of capacity", work, plan, stage, targets)


def steady(stage: Stage, table: Table, length: Length) -> Iterator[Row]:
    """500 requests a second, however slow the answers are, of an upstream of 1.5 s: 750 in flight."""
    work = Work("mock?latency=1.5s", slots=1024)
    plan = length.plan(rate=500.0, warm_s=OPENED_AFTER_S, seconds=1.5 * length.seconds)
    floor = stage.through_gateway(work, plan, floor=True)
    found = stage.through_gateway(work, plan)
    what = "500/s, upstream of 1.5 s"
    yield table.right(what, found, floor)
    yield table.latency(what, found, floor, 50)
    yield table.latency(what, found, floor, 99, Target(at_most=1700))
    yield table.row(f"{what}: node", CPU, found.node_cpu, floor.node_cpu)
    yield table.row(f"{what}: node, gateway and broker", CPU, found.path_cpu, floor.path_cpu)
    yield table.row(f"{what}: node, RSS", "MiB", found.node_rss, floor.node_rss, Target(at_most=250))
    yield table.row(f"{what}: node, PSS", "MiB", found.node_pss, floor.node_pss)
    yield from table.cpu_by_process(what, found)


def bodies(stage: Stage, table: Table, length: Length) -> Iterator[Row]:
    """Large requests: a prompt of 1 MB, and three images of 300 kB each as data URLs; 8 in flight."""
    work = Work("mock?latency=100ms")
    for what, more in (("prompt of 1 MB", {"prompt_bytes": 1_000_000}), ("3 images of 300 kB", {"prompt_bytes": 300_000, "images": 3})):
        plan = length.plan(in_flight=8, **more)
        floor = stage.through_gateway(work, plan, floor=True)
        found = stage.through_gateway(work, plan)
        yield from table.api(what, found, floor, target=None)
        yield from table.cpu_by_process(what, found)


def slots(stage: Stage, table: Table, length: Length) -> Iterator[Row]:
    """10 slots, an upstream of 100 ms and a queue that is never empty: at best 100 answers a second."""
    work, plan = Work("mock?latency=100ms", slots=10), length.plan(in_flight=300, wave=10, seconds=2 * length.seconds)
    floor = stage.straight(work, plan, floor=True)
    found = stage.straight(work, plan)
    yield table.right("10 slots", found, floor)
    yield table.row("10 slots: answers", "/s", found.report.steady_per_s, floor.report.steady_per_s, Target(at_least=98))


def sizes(stage: Stage, table: Table, length: Length) -> Iterator[Row]:
    """What a larger MAX_PROCESS_NUM costs: the same 64 in flight, upstream of 0 ms."""
    for count in length.of([1, 16, 128, 1024]):
        found = stage.through_gateway(Work("mock", slots=count), length.plan(in_flight=64))
        what = f"MAX_PROCESS_NUM={count}"
        yield table.right(what, found)
        yield table.row(f"{what}: answers", "/s", found.report.per_s)
        yield table.row(f"{what}: node", CPU, found.node_cpu)
        yield table.row(f"{what}: node, PSS", "MiB", found.node_pss)


def backlog(stage: Stage, table: Table, length: Length) -> Iterator[Row]:
    """What a long queue costs: 100 to 100,000 demo requests waiting in the broker, while their node works them off."""
    for count in (100, 10_000) if length.is_quick else (100, 10_000, 100_000):
        work, plan = Work(variables={"REQUEST_TTL_S": "1h"}), length.plan(in_flight=count, timeout_s=1.0)
        floor = stage.straight(work, plan, floor=True)
        found = stage.straight(work, plan)
        what = f"{count:,} waiting"
        yield table.row(f"{what}: answers", "/s", found.report.per_s, floor.report.per_s)
        yield table.row(f"{what}: node", CPU, found.node_cpu, floor.node_cpu)
        yield table.row(f"{what}: broker", CPU, found.cpu_per_1000[BROKER], floor.cpu_per_1000[BROKER])
        yield table.row(f"{what}: node, PSS", "MiB", found.node_pss, floor.node_pss)


SCENARIOS: dict[str, Scenario] = {
    "demo": demo, "api": api, "alone": alone, "streams": streams, "latency": latency, "steady": steady, "bodies": bodies,
    "slots": slots, "sizes": sizes, "backlog": backlog, "start": start, "idle": idle,
}  # fmt: skip
