"""Who is killed: nodes and gateways, each started again as systemd would, and what is to be found below them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.chaos.ledger import Ledger
from tests.real.node import NodeProcess
from tests.real.processes import end_group

MARK = "WORKERNODE_CHAOS"
LEASE_S = 12.0  # a stopped supervisor's children end within it
DRAIN_TIMEOUT_S = 3
DRAINS_WITHIN_S = DRAIN_TIMEOUT_S + 25.0
SYSTEMD_WAITS_S = 2.0
STARTS_IN_S = 5.0  # before that it may not have its signal handlers yet: SIGTERM ends it, with nothing in hand


class Player:
    """A process that is wanted. `owner` marks it and everything below it in the environment."""

    def __init__(self, name: str, owner: str, ledger: Ledger, folder: Path, command: tuple[str, ...], variables: Mapping[str, str]) -> None:
        self.name, self._ledger = name, ledger
        self._process = NodeProcess({**variables, MARK: owner}, command=command, gateway=command != ("supervisor.py",))
        self._process.log_path.unlink()
        self._process.log_path = folder / f"{name.replace(' ', '-')}.log"
        self.port = self._process.port
        self._start_at_s: float | None = None
        self._go_on_at_s: float | None = None
        self._drained_by_s: float | None = None
        self._log_start = 0
        self._started_s = 0.0

    def start(self) -> None:
        self._start_at_s, self._go_on_at_s, self._drained_by_s = None, None, None
        self._log_start = self._process.log_path.stat().st_size if self._process.log_path.exists() else 0
        self._process.start(wait=False)
        self._started_s = time.monotonic()

    @property
    def runs(self) -> bool:
        return self._process.process is not None and self._process.process.poll() is None

    @property
    def settled(self) -> bool:
        return self.runs and self._drained_by_s is None

    @property
    def log(self) -> str:
        """Since its last start."""
        with self._process.log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def kill(self, pause_s: float) -> bool:
        """False where there is nobody to kill."""
        if not self.runs:
            return False
        self._ledger.incident("kill", self.name, LEASE_S + pause_s)
        self._end_now(pause_s)
        return True

    def freeze(self, for_s: float) -> bool:
        if not self.runs or self._go_on_at_s is not None or self._drained_by_s is not None:
            return False
        self._ledger.incident("stop", self.name, for_s + LEASE_S)
        self._process.signal(signal.SIGSTOP)
        self._go_on_at_s = time.monotonic() + for_s
        return True

    def drain(self, pause_s: float) -> bool:
        """SIGTERM; a stopped one takes it once it goes on."""
        if not self.runs or self._drained_by_s is not None:
            return False
        self._ledger.incident("drain", self.name, DRAINS_WITHIN_S)
        self._process.signal(signal.SIGTERM)
        self._drained_by_s = max(time.monotonic(), self._go_on_at_s or 0.0) + DRAINS_WITHIN_S
        self._start_at_s = pause_s  # from its end on
        return True

    def tick(self) -> None:
        """Go on, start again, notice an end that nobody asked for: whatever is due."""
        now_s = time.monotonic()
        if self._go_on_at_s is not None and now_s >= self._go_on_at_s:
            self.go_on()
        if self._drained_by_s is not None:
            self._watch_drain(now_s)
        elif not self.runs and self._start_at_s is None:
            assert self._process.process is not None
            self._fault(f"ended by itself with exit code {self._process.process.returncode}")
            self._start_at_s = now_s + SYSTEMD_WAITS_S
        elif self._start_at_s is not None and now_s >= self._start_at_s:
            self.start()

    def go_on(self) -> None:
        self._go_on_at_s = None
        if self.runs:
            self._process.signal(signal.SIGCONT)

    def end(self) -> None:
        """As the drain of a storm, but for good; waits for it."""
        self.go_on()
        if self.drain(0.0):
            while self._drained_by_s is not None:
                self._watch_drain(time.monotonic())
                time.sleep(0.05)

    def destroy(self) -> None:
        if self._process.process is not None:
            self.go_on()
            end_group(self._process.process, signal.SIGKILL)

    def heal(self) -> None:
        """Running again as soon as it can be: a pause is cut short."""
        self.go_on()
        if self._start_at_s is not None and self._drained_by_s is None:
            self.start()

    def _watch_drain(self, now_s: float) -> None:
        assert self._drained_by_s is not None and self._process.process is not None
        if not self.runs:
            code = self._process.process.returncode
            was_starting = not self.log.strip() or self._drained_by_s - self._started_s < STARTS_IN_S + DRAINS_WITHIN_S
            if code != 0 and not (code == -signal.SIGTERM and was_starting):
                self._fault(f"exit code {code} after SIGTERM")
            self._drained_by_s, self._start_at_s = None, now_s + (self._start_at_s or 0.0)
        elif now_s > self._drained_by_s:
            self._fault(f"still there {DRAINS_WITHIN_S:g} s after SIGTERM")
            self._end_now(0.0)

    def _end_now(self, pause_s: float) -> None:
        """Also in the middle of a drain or of a stop, which are over with it."""
        self._process.kill()
        self._drained_by_s, self._go_on_at_s = None, None
        self._start_at_s = time.monotonic() + pause_s

    def _fault(self, what: str) -> None:
        self._ledger.incident("end", self.name, LEASE_S)
        self._ledger.node_faults.append(f"{time.strftime('%H:%M:%S')} {self.name} {what}")


@dataclass(frozen=True)
class Part:
    """A process below a node."""

    role: str  # backend, guard, model server, other
    node: str
    process: psutil.Process


def parts(run: str) -> list[Part]:
    """Every living process that bears the run's mark, whoever its parent is by now; in the order of their start."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            mark = process.environ().get(MARK, "")
            if mark.startswith(run) and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(Part(_role(" ".join(process.cmdline())), mark.removeprefix(f"{run} "), process))
    return found


def _role(command: str) -> str:
    if "guard.py" in command:
        return "guard"
    if "tests.chaos.model_server" in command:
        return "model server"
    if "spawn_main" in command:
        return "backend"
    return "supervisor" if "supervisor.py" in command else "other"
