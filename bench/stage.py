"""What a scenario needs, started and ended: broker, mock upstream, gateway, a node or the floor in its place, the load."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
import uuid
from dataclasses import dataclass, field, replace
from types import TracebackType

import msgspec
import pulsar

from backends.demo import ANSWER
from bench import watch
from bench.client import quiet_client
from bench.floor import READY
from bench.plan import Plan, Report
from bench.watch import Memory, Watch
from tests.real.brokers import BROKERS, Broker
from tests.real.node import NodeProcess
from tests.real.processes import end_group, start_bound, wait_until
from tests.real.upstream.ask import Ask

FLOOR_PROCESSES = 2  # as a node has children at work, on two cores
RECORDS_WITHIN_MS = 2000
WITHIN_S = 10.0


@dataclass(frozen=True)
class Work:
    """What a node, or the floor in its place, has to do. mock: how the upstream answers; "" is the demo's fixed answer."""

    mock: str = ""
    stream: bool = False
    slots: int = 128
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def expect(self) -> str:
        return Ask({}, self.mock).text if self.mock else ANSWER


@dataclass(frozen=True)
class Measured:
    """cpu_s: of the window, by process. memory: at its end."""

    report: Report
    cpu_s: dict[str, float]
    memory: dict[str, Memory]
    durations_ms: list[dict[str, float | None]] = field(default_factory=list)  # of the node's usage records, where they were asked for

    @property
    def cpu_per_1000(self) -> dict[str, float]:
        """CPU seconds by process for 1,000 answers."""
        return {name: 1000 * cpu_s / max(1.0, self.report.answered_in_window) for name, cpu_s in self.cpu_s.items()}

    @property
    def node_cpu(self) -> float:
        """CPU seconds for 1,000 answers, of supervisor and children."""
        return watch.of_node(self.cpu_per_1000)

    @property
    def path_cpu(self) -> float:
        """Likewise of node, gateway and broker."""
        return watch.of_path(self.cpu_per_1000)

    @property
    def node_rss(self) -> float:
        """MiB; what processes share counts in each."""
        return watch.of_node({name: memory.rss for name, memory in self.memory.items()})

    @property
    def node_pss(self) -> float:
        return watch.of_node({name: memory.pss for name, memory in self.memory.items()})


class Stage:
    """`with Stage("embedded") as stage:`; a broker and a mock upstream for several scenarios."""

    def __init__(self, broker: str) -> None:
        """broker: embedded, or real."""
        self.broker: Broker = BROKERS["pulsar" if broker == "real" else broker]()
        self.upstream_url = ""
        self.others_percent = 0.0  # the most that anything else took of the machine, in a window
        self._upstream: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Stage:
        self._upstream = start_bound([sys.executable, "-m", "bench.mock"], stdout=subprocess.PIPE)
        assert self._upstream.stdout is not None
        self.upstream_url = self._upstream.stdout.readline().decode().strip()
        self.broker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.broker.close()
        if self._upstream is not None:
            end_group(self._upstream)

    # the parts

    def variables(self, model: str, work: Work) -> dict[str, str]:
        """A node's environment."""
        kind = {"NODE_TYPE": "remote", "API_URL": self.upstream_url} if work.mock else {"NODE_TYPE": "demo"}
        common = {"MODEL_NAME": model, "PULSAR_URL": self.broker.url, "MAX_PROCESS_NUM": str(work.slots), "RES_TOPIC_NAME": f"res-{model}"}
        return kind | common | work.variables

    def node(self, model: str, work: Work) -> NodeProcess:
        """Started by `with`."""
        return NodeProcess(self.variables(model, work))

    def worker(self, model: str, work: Work, floor: bool, promises: bool = False) -> NodeProcess:
        return self.floor(model, work, promises) if floor or promises else self.node(model, work)

    def floor(self, model: str, work: Work, promises: bool = False) -> NodeProcess:
        """promises: with a node's, in the fewest lines (bench/promises.py)."""
        options = ["--url", self.broker.url, "--model", model, "--at-once", str(work.slots)]
        options += ["--processes", str(min(FLOOR_PROCESSES, work.slots)), "--upstream", self.upstream_url if work.mock else ""]
        return _Floor({}, command=("-m", "bench.promises" if promises else "bench.floor", *options))

    def gateway(self) -> NodeProcess:
        return _Gateway({"PULSAR_URL": self.broker.url}, command=("-m", "gateway"), gateway=True)

    # measuring

    def through_gateway(self, work: Work, plan: Plan, *, floor: bool = False, promises: bool = False) -> Measured:
        """The whole path: load → gateway → broker → node (or floor) → upstream, and back."""
        model = new_model()
        with self.gateway() as gateway, self.worker(model, work, floor, promises) as node:
            programs = {watch.NODE: node.pid, watch.GATEWAY: gateway.pid, watch.BROKER: self.broker.pid}
            url = f"http://127.0.0.1:{gateway.port}"
            return self.measure("bench.load", replaced(plan, url=url, model=model, work=work), programs)

    def straight(self, work: Work, plan: Plan, *, floor: bool = False, records: bool = False) -> Measured:
        """The node (or floor) alone: the load publishes by itself, and takes the answers."""
        model = new_model()
        read = Records(self.broker.url, f"res-{model}") if records else None
        with self.worker(model, work, floor) as node:
            programs = {watch.NODE: node.pid, watch.BROKER: self.broker.pid}
            found = self.measure("bench.straight", replaced(plan, url=self.broker.url, model=model, work=work), programs)
            return replace(found, durations_ms=read.durations_ms()) if read else found

    def directly(self, work: Work, plan: Plan) -> Measured:
        """The upstream alone, asked by the same load: what of a latency is not ours."""
        return self.measure("bench.load", replaced(plan, url=self.upstream_url, model="mock", work=work), {})

    def used_s(self, seen: Watch) -> dict[str, float]:
        """CPU seconds by process; and whether others disturbed it."""
        used_s = seen.used_s()
        self.others_percent = max(self.others_percent, seen.others_percent(used_s))
        return used_s

    def measure(self, load_module: str, plan: Plan, programs: dict[str, int]) -> Measured:
        assert self._upstream is not None
        load = start_bound([sys.executable, "-m", load_module, msgspec.json.encode(plan).decode()], stdout=subprocess.PIPE)
        try:
            assert load.stdout is not None
            _await(load, b"from\n")
            seen = Watch(programs | {watch.UPSTREAM: self._upstream.pid, watch.LOAD: load.pid})
            _await(load, b"to\n")
            used_s, memory = self.used_s(seen), seen.memory()
            report = msgspec.json.decode(load.stdout.readline(), type=Report)
        finally:
            end_group(load)
        return Measured(report, used_s, memory)


class Records:
    """The usage records of one topic from now on."""

    def __init__(self, url: str, topic: str) -> None:
        self._client = quiet_client(url)
        self._consumer = self._client.subscribe(topic, "bench", receiver_queue_size=10_000)

    def durations_ms(self) -> list[dict[str, float | None]]:
        """All that have come; closes."""
        found = []
        with contextlib.closing(self._client), contextlib.suppress(pulsar.Timeout):
            while True:
                found.append(json.loads(self._consumer.receive(RECORDS_WITHIN_MS).data())["durations_ms"])
        return found


def new_model() -> str:
    """A topic of its own for each run."""
    return f"bench-{uuid.uuid4().hex[:8]}"


def replaced(plan: Plan, *, url: str, model: str, work: Work) -> Plan:
    return msgspec.structs.replace(plan, url=url, model=model, mock=work.mock, expect=work.expect, stream=work.stream)


class _Floor(NodeProcess):
    def wait_ready(self, within_s: float = 60.0) -> None:
        self.wait_log(READY, within_s=within_s)


class _Gateway(NodeProcess):
    def wait_ready(self, within_s: float = 60.0) -> None:
        wait_until(self._is_healthy, within_s=within_s, what="gateway", every_s=0.02)

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            assert self.process is None or self.process.poll() is None, self.log()[-2000:]
            return False


def _await(load: subprocess.Popen[bytes], wanted: bytes) -> None:
    """The load's next line. What a load that ended had to say of it is on the standard error."""
    assert load.stdout is not None
    if load.stdout.readline() != wanted:
        raise RuntimeError(f"the load generator ended with exit code {load.wait(WITHIN_S)}")
