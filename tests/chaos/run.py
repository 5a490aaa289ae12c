"""One run, from the first process to the verdict."""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import checker, report
from tests.chaos.ledger import TOKENS, Ledger
from tests.chaos.load import Load
from tests.chaos.players import DRAIN_TIMEOUT_S, LEASE_S, Player, parts
from tests.chaos.records import RecordKeeper
from tests.chaos.schedule import schedule
from tests.chaos.service import Service
from tests.chaos.storm import NOBODY, Storm
from tests.real.brokers import Broker
from tests.real.processes import wait_until
from tests.real.upstream import Upstream
from tests.real.upstream.tally import read

SLOTS_A, SLOTS_B, REPLICAS_B = 24, 16, 2
STARTS_WITHIN_S = 90.0
RECORDS_WITHIN_S = 60.0
FULL_WITHIN_S = 60.0  # a node that lost children at the end may still hold their successors back
FULL_TAKES_S = 2.0
FULL = f"mock?latency=0&gap={int(FULL_TAKES_S / TOKENS * 1000)}ms&tokens={TOKENS}"
PROGRESS_EVERY_S = 5.0
LOWERED = re.compile(r"limit \d+ → \d+")  # node B takes less where the machine is short: then fewer are no stuck slots


@dataclass(frozen=True)
class Options:
    """`ttl_s`: REQUEST_TTL_S of the nodes, which bounds how long the end may take."""

    seed: int
    length_s: float
    broker_every_s: float = 60.0
    rate: float = 24.0
    ttl_s: float = 120.0
    gateways: int = 2


def run(options: Options, broker: Broker, say: Callable[[str], None] = print) -> tuple[report.Result, Path]:
    """The verdict, and the folder that holds the events and all logs. `broker` runs; from the main thread."""
    folder = Path(tempfile.mkdtemp(prefix="workernode-chaos-"))
    say(f"seed {options.seed}, {options.length_s:g} s of storm; events and logs: {folder}")
    with contextlib.ExitStack() as stack:
        return _Run(options, broker, folder, say, stack).through(), folder


class _Run:
    def __init__(self, options: Options, broker: Broker, folder: Path, say: Callable[[str], None], stack: contextlib.ExitStack) -> None:
        self._options, self._broker, self._folder, self._say = options, broker, folder, say
        self._id = f"run-{uuid.uuid4().hex[:8]}"
        self._model, self._records_topic = f"chaos-{self._id}", f"res-{self._id}"
        self._ledger = Ledger()
        self._tally = folder / "tokens.log"
        self._upstream = stack.enter_context(Upstream(tally=str(self._tally)))
        self._service = Service(self._ledger)
        stack.enter_context(self._service)
        self._nodes = [self._node("A", self._remote()), self._node("B", self._local())]
        self._gateways = [self._gateway(number) for number in range(options.gateways)]
        for player in self._players:
            stack.callback(player.destroy)
        stack.callback(lambda: (folder / "broker.log").write_text(broker.log_end(5000)))
        self._storm = Storm(self._id, self._ledger, self._nodes, self._gateways, broker, self._upstream)
        stack.callback(self._storm.close)
        clients_log = folder / "clients.log"
        ports = [gateway.port for gateway in self._gateways]
        self._load = Load(
            self._ledger, self._service, broker.url, self._model, ports, rate=options.rate, seed=options.seed, log=clients_log
        )
        stack.callback(self._load.close)
        self._keeper = RecordKeeper(broker.url, self._records_topic, clients_log)
        self._events = stack.enter_context((folder / "events.log").open("w"))
        self._began_s = time.monotonic()
        self._said_s = 0.0
        self._done: Counter[str] = Counter()

    @property
    def _players(self) -> list[Player]:
        return [*self._nodes, *self._gateways]

    def through(self) -> report.Result:
        self._keeper.subscribe()
        for player in self._players:
            player.start()
        self._await_ready()
        self._load.start()
        self._began_s = time.monotonic()
        self._do_storm()
        self._load.stop()
        self._log("the storm is over")
        took_s = time.monotonic() - self._began_s
        answered = sum(asked.final in ("result", "error") for asked in self._ledger.asked)
        self._storm.heal()
        self._settle()
        asked = list(self._ledger.asked)
        self._await_ready()
        stuck = self._find_stuck()
        records = self._keeper.read(self._all_recorded, RECORDS_WITHIN_S)
        orphans = self._find_orphans()
        found = checker.check(asked, self._ledger.incidents, records)
        spent, faults = read(self._tally), self._ledger.node_faults
        return report.Result(self._options.seed, took_s / 60, found, orphans, stuck, faults, answered / took_s, self._done, spent)

    def _do_storm(self) -> None:
        for event in schedule(self._options.seed, self._options.length_s, self._options.broker_every_s):
            self._tick_until(self._began_s + event.at_s)
            target = self._storm.perform(event)
            self._done[event.kind] += target != NOBODY
            self._log(f"{event} → {target}")
        self._tick_until(self._began_s + self._options.length_s)

    def _tick_until(self, until_s: float) -> None:
        while time.monotonic() < until_s:
            self._storm.tick()
            self._show_progress()
            time.sleep(0.05)

    def _settle(self) -> None:
        """What is open is answered, or refused as too old; what is open after that is lost."""
        deadline_s = time.monotonic() + self._options.ttl_s + LEASE_S + 20
        while self._ledger.open() and time.monotonic() < deadline_s:
            self._tick_until(time.monotonic() + 0.2)
        self._log(f"settled: {len(self._ledger.open())} open")

    def _await_ready(self) -> None:
        """Where a node's log words it otherwise, what follows tells all the same, only later."""
        with contextlib.suppress(TimeoutError):
            wait_until(self._is_ready, within_s=STARTS_WITHIN_S if not self._ledger.asked else 30, what="ready nodes")

    def _is_ready(self) -> bool:
        nodes = all("subscribed at" in node.log and "is ready after" in node.log for node in self._nodes)
        return nodes and all("gateway on http" in gateway.log for gateway in self._gateways)

    def _find_stuck(self) -> list[str]:
        """More than both nodes have slots for, at once, until all is answered in three times what one takes."""
        deadline_s = time.monotonic() + FULL_WITHIN_S
        while stuck := self._fill():
            self._log(f"not full: {'; '.join(stuck)}")
            if time.monotonic() > deadline_s:
                return stuck
            self._tick_until(time.monotonic() + 3)
        return []

    def _fill(self) -> list[str]:
        self._upstream.reset()
        began_s = time.monotonic()
        asked = self._load.burst(3 * (SLOTS_A + SLOTS_B) // 2, FULL)
        while any(one.final is None for one in asked) and time.monotonic() < began_s + self._options.ttl_s:
            self._tick_until(time.monotonic() + 0.05)
        took_s = time.monotonic() - began_s
        peak = self._upstream.stats()["peak_in_flight"]
        peak_b = most_at_once((one.attempts[-1].first_s, one.ended_s) for one in asked if one.attempts and one.attempts[-1].node == "B")
        unanswered = sum(one.final != "result" for one in asked)
        self._log(f"{len(asked)} at once: {took_s:.1f} s, A had {peak} of {SLOTS_A}, B {peak_b} of {SLOTS_B}")
        found = [f"{unanswered} of {len(asked)} had no result"] if unanswered else []
        found += [f"{len(asked)} took {took_s:.1f} s"] if took_s > 3 * FULL_TAKES_S + 3 else []
        found += [f"{SLOTS_A - peak} slots of A"] if peak < SLOTS_A else []
        if peak_b < SLOTS_B and not LOWERED.search(self._nodes[1].log):
            found.append(f"{SLOTS_B - peak_b} slots of B")
        return found

    def _all_recorded(self, records: checker.Records) -> bool:
        return all(records.get(asked.tag) for asked in self._ledger.asked if checker.needs_record(asked))

    def _find_orphans(self) -> list[str]:
        """What lives although its node was asked to end, and has ended."""
        enders = [threading.Thread(target=player.end) for player in self._players]
        for ender in enders:
            ender.start()
        for ender in enders:
            ender.join(120)
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not parts(self._id), within_s=LEASE_S, what="end of all processes")
        return [f"{part.node}: {part.role} {part.process.pid}" for part in parts(self._id)]

    def _show_progress(self) -> None:
        now_s = time.monotonic()
        if now_s - self._said_s >= PROGRESS_EVERY_S:
            self._said_s = now_s
            up = [player.name for player in self._players if player.runs] + (["broker"] if self._storm.broker_is_up else [])
            self._say(report.progress(self._ledger, now_s - self._began_s, f"up: {', '.join(up)}"))

    def _log(self, line: str) -> None:
        self._events.write(f"{time.strftime('%H:%M:%S')} +{time.monotonic() - self._began_s:7.2f} {line}\n")
        self._events.flush()

    # the players

    def _node(self, name: str, more: dict[str, str]) -> Player:
        variables = {
            "MODEL_NAME": self._model, "PULSAR_URL": self._broker.url, "RES_TOPIC_NAME": self._records_topic,
            "STATE_DIR": str(self._folder / f"state-{name}"), "ON_TROUBLE": "hold", "REQUEST_TTL_S": f"{self._options.ttl_s:g}",
            "MAX_ATTEMPTS": "20", "DRAIN_TIMEOUT_S": str(DRAIN_TIMEOUT_S), "FIRST_TOKEN_TIMEOUT_S": "20", "READ_TIMEOUT_S": "15",
        }  # fmt: skip
        (self._folder / f"state-{name}").mkdir()
        return Player(name, f"{self._id} {name}", self._ledger, self._folder, ("supervisor.py",), variables | more)

    def _remote(self) -> dict[str, str]:
        return {"NODE_TYPE": "remote", "API_URL": self._upstream.url, "BACKEND_PROCESSES": "3", "MAX_PROCESS_NUM": str(SLOTS_A)}

    def _local(self) -> dict[str, str]:
        python, tally = shlex.quote(sys.executable), shlex.quote(str(self._tally))
        command = f"{python} -m tests.chaos.model_server {{port}} {SLOTS_B // REPLICAS_B} {tally}"
        return {"NODE_TYPE": "local", "MODEL_COMMAND": command, "LOCAL_REPLICAS": str(REPLICAS_B), "MAX_PROCESS_NUM": str(SLOTS_B)}

    def _gateway(self, number: int) -> Player:
        name, patience_s = f"gateway {number}", self._options.ttl_s + 30
        variables = {"PULSAR_URL": self._broker.url, "TIMEOUT": f"{patience_s:g}", "DRAIN_TIMEOUT_S": "3"}
        return Player(name, f"{self._id} {name}", self._ledger, self._folder, ("-m", "gateway"), variables)


def most_at_once(spans: Iterable[tuple[float, float]]) -> int:
    """How many of these times, from when to when, overlap at most."""
    changes = sorted((at_s, change) for start_s, end_s in spans for at_s, change in ((start_s, 1), (end_s, -1)))
    return max(itertools.accumulate(change for _, change in changes), default=0)
