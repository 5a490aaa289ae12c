"""A model server on this machine, from its start to its last process. Used by the child that answers with it."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import urllib3

from backends import engine
from backends.engine import ModelServerFailed
from backends.guarded import Guarded
from backends.room import memory_there, oom_kills, too_little
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
    (r"unknown model architecture", "this release of llama.cpp does not know the model's architecture"),
)
OUT_OF_MEMORY = re.compile(r"failed to allocate|insufficient memory|out of memory|bad_alloc|cannot allocate memory", re.IGNORECASE)
OUT_OF_GPU_MEMORY = re.compile(r"(cuda|hip|rocm|vulkan|gpu)\W.*(out of memory|failed to allocate)|OutOfMemoryError", re.IGNORECASE)
KILLED_EXIT_CODE = 128 + 9


class ModelServer:
    """One replica: a command under a guard that ends it with this process, on a free port of 127.0.0.1.

    `say` takes progress and changes as lines for people. Not reusable: a new start is a new object.
    """

    def __init__(self, settings: Settings, replica: int, say: Callable[[str], None]) -> None:
        self._settings, self._replica, self._say = settings, replica, say
        self._http = urllib3.PoolManager(retries=False, timeout=PROBE_TIMEOUT_S)
        self._process: Guarded | None = None
        self._stopped = self._lacks_health = False
        self._name = "the model"
        self._chosen: engine.Engine | None = None
        self._found = memory_there()
        self._oom_kills: int | None = None
        self.base_url = ""  # http://127.0.0.1:PORT/v1
        self.slots = 0  # requests it computes at once; it queues more without bound

    def start(self) -> None:
        """Returns once the server is healthy, within BOOT_TIMEOUT_S. Raises ModelServerFailed; then nothing is left running."""
        deadline = time.monotonic() + self._settings.boot_timeout_s
        chosen = engine.choose(self._settings, self._replica)
        self._name, self._chosen = chosen.name, chosen
        self._found, self._oom_kills = memory_there(chosen.gpus), oom_kills()
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
        return f"the model server for {self._name} {self._process.ending()}{self._memory_words()}{self.quoted()}"

    def health(self, timeout_s: float) -> int:
        """The status of /health, or of /v1/models where it has none; 0: nobody listens, or the
        connection is broken off, -1: no answer in time."""
        try:
            return self._ask_health(timeout_s)
        except urllib3.exceptions.NewConnectionError:  # of which urllib3 makes a kind of time-out
            return 0
        except urllib3.exceptions.TimeoutError:
            return -1
        except urllib3.exceptions.HTTPError:
            return 0

    def stop(self, deadline_s: float) -> None:
        """End it with all of its processes: TERM, TERM again, KILL. Close its streams first: llama.cpp waits for them."""
        self._stopped = True
        if self._process:
            self._process.stop(deadline_s)

    def _spawn(self, chosen: engine.Engine, port: int) -> None:
        given = engine.environment(os.environ, self._settings.secrets, chosen)
        self.base_url = f"http://127.0.0.1:{port}/v1"
        try:
            self._process = Guarded(chosen.command(port), given, self._log_file())
        except OSError as error:  # no more processes or descriptors to be had: not the model's fault
            raise ModelServerFailed(f"no process for {self._name} could be started: {error}", permanent=False) from error
        if self._stopped:
            self._process.stop(0)

    def _log_file(self) -> Path | None:
        folder = self._settings.state_dir
        return Path(folder) / f"model-server-{self._replica}.log" if folder and Path(folder).is_dir() else None

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
        return self.health(PROBE_TIMEOUT_S) == 200

    def _ask_health(self, timeout_s: float) -> int:
        paths = ["/v1/models"] if self._lacks_health else ["/health", "/v1/models"]
        for path in paths:
            answer: Any = self._http.request("GET", self.base_url.removesuffix("/v1") + path, timeout=timeout_s)
            if path != paths[-1] and answer.status in NO_SUCH_PATH:
                self._lacks_health = True
                continue
            return int(answer.status)
        return 0

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
        advice = next((f"; {words}" for pattern, words in ADVICE if re.search(pattern, self._process.said(), re.IGNORECASE)), "")
        report = f"the model server for {self._name} did not start: it {self._process.ending()}"
        return ModelServerFailed(report + (advice or self._memory_words()) + self.quoted(), permanent=permanent)

    def _memory_words(self) -> str:
        """Where it ended for want of memory, as far as that can be known: how much there was, and what to change."""
        assert self._process is not None and self._chosen is not None
        on_gpu = bool(OUT_OF_GPU_MEMORY.search(self._process.said()))
        was_killed = self._process.exit_code() == KILLED_EXIT_CODE
        if not was_killed and not on_gpu and not OUT_OF_MEMORY.search(self._process.said()):
            return ""
        before, now = self._oom_kills, oom_kills()
        if was_killed and before is not None and now == before:
            return ""  # the kernel counts, and it was not the kernel
        sure = "the kernel killed it: " if was_killed and before is not None else ""
        slots = self.slots or self._chosen.slots_if_unsaid
        return f"; {sure}{too_little(self._chosen.model_bytes, slots, self._chosen.context, self._found, on_gpu=on_gpu)}"

    def _too_late(self, waited_s: float) -> ModelServerFailed:
        assert self._process is not None
        quoted = self.quoted()
        self._process.stop(PROBE_TIMEOUT_S)
        message = f"the model server for {self._name} was not ready after {waited_s:.0f} s (BOOT_TIMEOUT_S)"
        return ModelServerFailed(message + quoted, permanent=False)

    def quoted(self) -> str:
        """Its last lines, below each other."""
        assert self._process is not None
        lines = self._process.last_lines()
        return "\n  its last lines:" + "".join(f"\n  | {line}" for line in lines) if lines else "; it said nothing"


def _free_port() -> int:
    """Free now; where somebody is quicker, start() notices and tries another."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
