"""A real node in a process of its own: `python supervisor.py` with an environment, its log, its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from tests.real.processes import end_group, free_port, start_bound, wait_until

OURS = re.compile(r"PULSAR|API_|MODEL|NODE_TYPE|PORT|HOST|DEBUG|LOG_FORMAT|RES_TOPIC|TIMEOUT|ON_TROUBLE|AIMODEL")


class NodeProcess:
    """`with NodeProcess({"PULSAR_URL": …}) as node`: ready once its backends are, and its gateway where it has one."""

    def __init__(self, variables: Mapping[str, str], *, command: tuple[str, ...] = ("supervisor.py",), gateway: bool = False) -> None:
        kept = {name: value for name, value in os.environ.items() if not OURS.search(name)}
        self.model = variables.get("MODEL_NAME", "static")
        self.port = free_port() if gateway else 0
        self.environment = {**kept, **({"PORT": str(self.port)} if gateway else {}), **variables}
        self._command = [sys.executable, *command]
        handle, path = tempfile.mkstemp(suffix=".log", prefix="node-")
        os.close(handle)
        self.log_path = Path(path)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True, within_s: float = 60.0) -> NodeProcess:
        self.process = start_bound(self._command, log=self.log_path, env=self.environment)
        if wait:
            self.wait_ready(within_s)
        return self

    def wait_ready(self, within_s: float = 60.0) -> None:
        wanted = ["subscribed at", "backend 0 is ready", *(["gateway is ready"] if self.port else [])]
        self.wait_log(*wanted, within_s=within_s)

    def wait_log(self, *words: str, within_s: float = 30.0) -> str:
        """Until the log holds all of `words`; fails with the log at its end if the node has ended instead."""

        def said() -> str | None:
            log = self.log()
            if all(word in log for word in words):
                return log
            assert self.process is None or self.process.poll() is None, f"the node ended:\n{log[-4000:]}"
            return None

        try:
            return wait_until(said, within_s=within_s, what=f"{words!r} in the node's log")
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.log()[-4000:]}") from None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def tree(self) -> list[psutil.Process]:
        assert self.process is not None
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def backends(self) -> list[psutil.Process]:
        """The spawned children, the gateway among them, oldest first."""
        assert self.process is not None
        return backends_of(self.process.pid)

    def working_on(self, url: str) -> psutil.Process:
        """A backend that has a connection to this server: not the spare."""
        port = urlsplit(url).port
        return next(c for c in self.backends() if any(found.raddr and found.raddr.port == port for found in c.net_connections("tcp")))

    def signal(self, number: signal.Signals) -> None:
        """To the supervisor alone, as `docker stop` and systemd's KillMode=mixed do."""
        assert self.process is not None
        os.kill(self.process.pid, number)

    def wait(self, within_s: float = 30.0) -> int:
        """Its exit code."""
        assert self.process is not None
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the node did not end within {within_s:g} s:\n{self.log()[-4000:]}") from None

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL to the supervisor alone; its children have to notice by themselves."""
        self.signal(signal.SIGKILL)
        self.wait()

    def __enter__(self) -> NodeProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            end_group(self.process, signal.SIGKILL)
        self.log_path.unlink(missing_ok=True)


def backends_of(supervisor: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(supervisor).children() if _is_spawned(child)]


def _is_spawned(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # or a zombie
        return False
