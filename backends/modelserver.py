"""A model server on this machine, from its start to its last process. Used by the child that answers with it."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import urllib3

from backends import engine
from backends.engine import ModelServerFailed
from backends.guarded import Guarded
from config import Settings

__all__ = ["ModelServer", "ModelServerFailed"]

PROBE_TIMEOUT_S = 2.0
PROBE_EVERY_S = 0.1
PROGRESS_EVERY_S = 5.0
PORT_TRIES = 3
NO_SUCH_PATH = (404, 405, 501)
PORT_TAKEN = re.compile(r"address already in use|couldn't bind|EADDRINUSE|\[errno 98\]", re.IGNORECASE)
SIGILL_EXIT_CODE = 128 + 4
# What llama.cpp and its like write where it is not plain to everyone; matched against the whole log.
ADVICE = (
    (r"corrupted or incomplete|invalid magic|failed to read header", "the model file is damaged or incomplete: fetch it again"),
    (r"failed to allocate|insufficient memory|out of memory|bad_alloc|cannot allocate memory",
     "the model does not fit into memory: take a smaller one, a smaller quantisation of it, or lower MAX_PROCESS_NUM"),
    (r"unknown model architecture", "this release of llama.cpp does not know the model's architecture"),
)


class ModelServer:
    """One replica: a command under a guard that ends it with this process, on a free port of 127.0.0.1.

    `say` takes progress and changes as lines for people. Not reusable: a new start is a new object.
    """

    def __init__(self, settings: Settings, replica: int, say: Callable[[str], None]) -> None:
        self._settings, self._replica, self._say = settings, replica, say
        self._http = urllib3.PoolManager(retries=False, timeout=PROBE_TIMEOUT_S)
        self._process: Guarded | None = None
        self._stopped = False
        self._name = "the model"
        self.base_url = ""  # http://127.0.0.1:PORT/v1
        self.slots = 0  # requests it computes at once; it queues more without bound

    def start(self) -> None:
        """Returns once the server is healthy, within BOOT_TIMEOUT_S. Raises ModelServerFailed; then nothing is left running."""
        deadline = time.monotonic() + self._settings.boot_timeout_s
        chosen = engine.choose(self._settings, self._replica)
        self._name = chosen.name
        for attempt in range(1, PORT_TRIES + 1):
            port = _free_port()
            self._spawn(chosen, port)
            if self._await_health(deadline):
                break
            if attempt == PORT_TRIES or not self._port_was_taken():
                raise self._failure()
            self._say(f"model server {self._replica}: port {port} was taken by another program; trying another")
        self.slots = self._total_slots() or chosen.slots_if_unsaid
        self._say(f"model server {self._replica}: {self._name} is ready, {self.slots} requests at once")

    def alive(self) -> bool:
        return self._process is not None and self._process.alive()

    def pids(self) -> list[int]:
        """Its guard, itself and all below it, as far as they live."""
        return self._process.pids() if self._process else []

    def exit_report(self) -> str:
        """How it ended, the likely cause, and its last lines, for people."""
        if self._process is None:
            return f"the model server for {self._name} was not started"
        return f"the model server for {self._name} {self._process.ending()}{self._quoted()}"

    def stop(self, deadline_s: float) -> None:
        """End it with all of its processes: TERM, TERM again, KILL. Close its streams first: llama.cpp waits for them."""
        self._stopped = True
        if self._process:
            self._process.stop(deadline_s)

    def _spawn(self, chosen: engine.Engine, port: int) -> None:
        given = engine.environment(os.environ, self._settings.secrets, downloads=chosen.downloads)
        self.base_url = f"http://127.0.0.1:{port}/v1"
        try:
            self._process = Guarded(chosen.command(port), given)
        except OSError as error:  # no more processes or descriptors to be had: not the model's fault
            raise ModelServerFailed(f"no process for {self._name} could be started: {error}", permanent=False) from error
        if self._stopped:
            self._process.stop(0)

    def _await_health(self, deadline: float) -> bool:
        """True once healthy, False if it ended before. Raises ModelServerFailed when the time is over."""
        assert self._process is not None
        began = said = time.monotonic()
        while not self._process.wait(PROBE_EVERY_S):
            if self._healthy() and self.alive():
                return True
            now = time.monotonic()
            if now >= deadline:
                raise self._too_late(now - began)
            if now - said >= PROGRESS_EVERY_S:
                said = now
                self._say(f"model server {self._replica}: loading {self._name}, {now - began:.0f} s so far")
        return False

    def _healthy(self) -> bool:
        """llama.cpp says 503 while it loads; a server without /health lists its models once it can answer."""
        status, _ = self._get("/health")
        if status in NO_SUCH_PATH:
            status, _ = self._get("/v1/models")
        return status == 200

    def _total_slots(self) -> int | None:
        status, body = self._get("/props")
        if status != 200:
            return None
        try:
            found = json.loads(body)["total_slots"]
        except (ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, int) and found > 0 else None

    def _get(self, path: str) -> tuple[int, bytes]:
        """Status and body; status 0 where nothing answers."""
        try:
            answer: Any = self._http.request("GET", self.base_url.removesuffix("/v1") + path)
        except urllib3.exceptions.HTTPError:
            return 0, b""
        return answer.status, answer.data

    def _port_was_taken(self) -> bool:
        return self._process is not None and not self._stopped and bool(PORT_TAKEN.search(self._process.said()))

    def _failure(self) -> ModelServerFailed:
        """It ended before it was healthy. By an exit code of its own: it would do so again. By a signal: who knows."""
        assert self._process is not None
        if self._stopped:
            return ModelServerFailed(f"the model server for {self._name} was stopped while it started", permanent=False)
        code = self._process.exit_code()
        permanent = code is not None and (0 <= code <= 128 or code == SIGILL_EXIT_CODE) and not self._port_was_taken()
        advice = next((words for pattern, words in ADVICE if re.search(pattern, self._process.said(), re.IGNORECASE)), None)
        report = f"the model server for {self._name} did not start: it {self._process.ending()}"
        return ModelServerFailed(report + (f"; {advice}" if advice else "") + self._quoted(), permanent=permanent)

    def _too_late(self, waited_s: float) -> ModelServerFailed:
        assert self._process is not None
        quoted = self._quoted()
        self._process.stop(PROBE_TIMEOUT_S)
        message = f"the model server for {self._name} was not ready after {waited_s:.0f} s (BOOT_TIMEOUT_S)"
        return ModelServerFailed(message + quoted, permanent=False)

    def _quoted(self) -> str:
        assert self._process is not None
        lines = self._process.last_lines()
        return "\n  its last lines:" + "".join(f"\n  | {line}" for line in lines) if lines else "; it said nothing"


def _free_port() -> int:
    """Free now; where somebody is quicker, start() notices and tries another."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
