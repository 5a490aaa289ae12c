"""A command under its guard (guard.py), as its owner holds it: its last lines, its end, its whole tree."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from backends import guard
from errors import killed_by

MARK = "WORKERNODE_GUARDED"
KEPT_LINES, KEPT_LINE_CHARACTERS = 100, 400
QUOTED_LINES = 6
MAX_LOG_BYTES = 4 << 20
SWEEP_DEADLINE_S = 5.0
ANSI_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Guarded:
    """Starts `command` at once, in a session of its own: a terminal's Ctrl-C is for the node, which then ends it in order.

    Its guard ends it when this process ends, however that happens. Output is read by a thread into a ring of its last
    lines, so that it can neither fill a disk nor a pipe, and into the file `log`, where one is named: it and the one before
    it hold MAX_LOG_BYTES each. Raises OSError where not even the guard could be started.
    """

    def __init__(self, command: list[str], environ: Mapping[str, str], log: Path | None = None) -> None:
        self._log = log
        self._mark = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._ended = threading.Event()
        guard_command = [sys.executable, "-I", "-S", str(Path(guard.__file__).resolve()), *command]
        self._guard = subprocess.Popen(
            guard_command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**environ, MARK: self._mark}, start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="model-log", daemon=True)
        self._reader.start()
        threading.Thread(target=self._await_end, name="model-end", daemon=True).start()

    def alive(self) -> bool:
        return not self._ended.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended, with its whole tree, within the time."""
        return self._ended.wait(timeout_s)

    def pids(self) -> list[int]:
        """The guard, the command and all below them, as far as they live."""
        return [self._guard.pid, *sorted(guard.descendants(self._guard.pid))] if self.alive() else []

    def stop(self, deadline_s: float) -> None:
        """End the whole tree: TERM, TERM again, KILL at two thirds of the deadline. Never raises; may be called twice."""
        with contextlib.suppress(OSError, ValueError):  # the guard has ended, or has its order already
            assert self._guard.stdin is not None
            self._guard.stdin.write(f"{deadline_s:.3f}\n".encode())
            self._guard.stdin.close()
        if not self._ended.wait(deadline_s):
            self._guard.kill()
            self._ended.wait(SWEEP_DEADLINE_S)

    def exit_code(self) -> int | None:
        """As a shell gives it, 128 + N for signal N; negative where the guard itself was killed; None while it runs."""
        return None if self.alive() else self._guard.returncode

    def ending(self) -> str:
        """How it ended, in words, without its log: `was killed by signal SIGKILL (most likely …)`."""
        code = self.exit_code()
        if code is None:
            return "is running"
        if code < 0:
            return f"was ended because its guard was killed by {killed_by(-code)}"
        if code > 128:
            return f"was killed by {killed_by(code - 128)}"
        return {126: "cannot be executed", 127: "was not found: there is no such command"}.get(code, f"ended with exit code {code}")

    def last_lines(self, count: int = QUOTED_LINES) -> list[str]:
        """The last lines of its output, control sequences removed."""
        if not self.alive():
            self._reader.join(1.0)  # what it said last may still be on its way
        return [line for line in list(self._lines) if line.strip()][-count:]

    def said(self) -> str:
        """All that is kept of its output."""
        return "\n".join(self.last_lines(KEPT_LINES))

    def _read(self) -> None:
        assert self._guard.stdout is not None
        output = self._guard.stdout.fileno()
        rest = b""
        while piece := os.read(output, 65536):
            *lines, rest = (rest + piece).replace(b"\r", b"\n").split(b"\n")
            self._keep(lines)
            if len(rest) > 65536:  # a line without an end
                self._keep([rest])
                rest = b""
        self._keep([rest])
        self._guard.stdout.close()

    def _keep(self, lines: list[bytes]) -> None:
        if self._log is not None and lines:
            self._log = _written(self._log, b"".join(line + b"\n" for line in lines if line))
        for line in lines[-KEPT_LINES:]:
            self._lines.append(ANSI_SEQUENCE.sub("", line.decode(errors="replace"))[:KEPT_LINE_CHARACTERS])

    def _await_end(self) -> None:
        if self._guard.wait() < 0:
            self._sweep()
        self._ended.set()

    def _sweep(self) -> None:
        """The guard was killed, and the kernel killed the command with it: kill what else of the tree bears the mark."""
        deadline = time.monotonic() + SWEEP_DEADLINE_S
        while (left := _marked(f"{MARK}={self._mark}".encode())) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def _written(log: Path, text: bytes) -> Path | None:
    """The file to go on with; None where it cannot be written to: a model is not to end for want of a log."""
    try:
        if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        with log.open("ab") as file:
            file.write(text)
    except OSError:
        return None
    return log


def _marked(mark: bytes) -> list[int]:
    """Processes whose environment, which every descendant inherits, holds the mark: parents and sessions can be left."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # another user's, or ended meanwhile
            if mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                found.append(int(name))
    return found
