"""What tests need to start other programs: free ports, processes that cannot outlive the tests, waiting to a deadline."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

REPOSITORY = Path(__file__).resolve().parents[2]
Found = TypeVar("Found")

# PR_SET_PDEATHSIG (1) makes Linux kill the program when what started it dies, a SIGKILLed or timed-out pytest included.
# Set by this wrapper, which then becomes the program (same pid), and not by preexec_fn, which forks Python code out of
# a process with threads. The signal belongs to the *thread* that started the process: start long-lived ones from the
# main thread. Elsewhere than on Linux only the fixtures' own ends and atexit remain.
_BIND_TO_PARENT = """
import ctypes, os, sys
parent = int(sys.argv[1])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != parent:
        sys.exit(0)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def start_bound(
    command: list[str], *, log: Path | None = None, env: Mapping[str, str] | None = None, stdout: int | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` as the leader of its own process group; it dies with this process. Output is appended to `log`."""
    wrapped = [sys.executable, "-S", "-c", _BIND_TO_PARENT, str(os.getpid()), *command]
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("ab")) if log else subprocess.DEVNULL
        return subprocess.Popen(
            wrapped,
            stdin=subprocess.DEVNULL,
            stdout=out if stdout is None else stdout,
            stderr=out if log else None,
            env=dict(os.environ if env is None else env),
            cwd=REPOSITORY,
            start_new_session=True,
        )


def end_group(process: subprocess.Popen[bytes], sent: signal.Signals = signal.SIGTERM, *, grace_s: float = 15.0) -> int:
    """Signal the process's own group, KILL it after `grace_s`, reap it; returns the exit status."""
    if process.poll() is None:
        _signal_group(process, sent)
    try:
        return process.wait(grace_s)
    except subprocess.TimeoutExpired:
        _signal_group(process, signal.SIGKILL)
        return process.wait(grace_s)


def _signal_group(process: subprocess.Popen[bytes], sent: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, sent)


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on.

    Below Linux's range for outgoing connections, so that no client takes it while a server that uses it restarts.
    """
    for _ in range(200):
        port = random.randint(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port between 20000 and 32000")


def wait_until(check: Callable[[], Found | None], *, within_s: float, what: str, every_s: float = 0.05) -> Found:
    """Poll `check` until it returns something true, and return that; TimeoutError names `what`."""
    deadline = time.monotonic() + within_s
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {within_s:g} s still no {what} (last seen: {found!r})")
        time.sleep(every_s)
