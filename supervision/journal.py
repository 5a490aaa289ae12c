"""The journal: which requests are aboard, kept in a file, so that a node that dies whole finds out what it died with.

One line each: `+ attempt deaths time id` before a request is dispatched, the same with `!` before its first output, `- id`
once it is no child's business any more. Nothing is synced to the disk: the kernel keeps what a killed process has
written, and a machine that loses its power loses counts, never requests.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
from loguru import logger
from msgspec.structs import replace

MAX_FILE_BYTES = 1 << 20
MAX_JOURNALS = 64  # nodes that share one folder
CLOCKS_DIFFER_S = 60.0


class Aboard(msgspec.Struct, frozen=True):
    """A request in a child's hands. `begun`: its requester may have seen output; `at_ms`: UTC."""

    attempt: int
    deaths: int
    at_ms: int
    begun: bool = False


class Journal:
    """`folder`: STATE_DIR, or None to keep nothing. `lost` holds what the node that wrote it last had aboard when it
    died; an entry leaves it with `recover`, or a start after `request_ttl_s`: whatever comes back then is refused, and most
    of what does not come back was answered by another node."""

    def __init__(self, folder: Path | None, request_ttl_s: float = 300.0) -> None:
        self._aboard: dict[str, Aboard] = {}
        self.lost: dict[str, Aboard] = {}
        self._kept_s = request_ttl_s + CLOCKS_DIFFER_S
        self._path: Path | None = None
        self._fd = -1
        self._written_bytes = 0
        if folder is not None:
            self._open(folder)

    def dispatched(self, request_id: str, attempt: int, deaths: int) -> None:
        """Before the request goes to a child."""
        if self._fd >= 0:
            self._note(request_id, Aboard(attempt, deaths, _now_ms()))

    def begun(self, request_id: str) -> None:
        if request_id in self._aboard:
            self._note(request_id, replace(self._aboard[request_id], begun=True))

    def ended(self, request_id: str) -> None:
        if self._aboard.pop(request_id, None) is not None:
            self._write(f"- {request_id}\n")

    def recover(self, request_id: str) -> Aboard | None:
        """What the node knew of this request when it died; once."""
        return self.lost.pop(request_id, None)

    def _note(self, request_id: str, aboard: Aboard) -> None:
        self._aboard[request_id] = aboard
        self._write(_line(request_id, aboard))

    def _open(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._path = _first_free(folder)
            known = _read(self._path)
            self.lost = {name: aboard for name, aboard in known.items() if aboard.at_ms > _now_ms() - self._kept_s * 1000}
            self._rewrite()
        except OSError as error:
            self._give_up(error)
        if self.lost:
            logger.warning("the last node with this STATE_DIR died with {} requests aboard; each counts an attempt", len(self.lost))

    def _write(self, line: str) -> None:
        if self._fd < 0:
            return
        try:
            self._written_bytes += os.write(self._fd, line.encode())
            if self._written_bytes > MAX_FILE_BYTES:
                self._rewrite()
        except OSError as error:
            self._give_up(error)

    def _rewrite(self) -> None:
        """Only what is still open; by a new file, so that a death in the middle leaves the old one."""
        assert self._path is not None
        fresh = self._path.with_suffix(".new")
        lines = "".join(_line(name, aboard) for name, aboard in [*self.lost.items(), *self._aboard.items()])
        fresh.write_text(lines)
        fresh.replace(self._path)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._written_bytes = 0

    def _give_up(self, error: OSError) -> None:
        """The node works on without: only the counting over its own death is lost."""
        logger.error("STATE_DIR {} cannot be written ({}): should this node die, no attempt is counted for what it had", self._path, error)
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
        self._fd = -1


def _first_free(folder: Path) -> Path:
    """The first journal that no living node holds: its lock goes with the process, however that ends."""
    for number in range(MAX_JOURNALS):
        lock = os.open(folder / f"journal-{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return folder / f"journal-{number}"
        except BlockingIOError:
            os.close(lock)
    raise OSError(f"{MAX_JOURNALS} nodes use this folder already")


def _line(request_id: str, aboard: Aboard) -> str:
    mark = "!" if aboard.begun else "+"
    return f"{mark} {aboard.attempt} {aboard.deaths} {aboard.at_ms} {request_id}\n"


def _read(path: Path) -> dict[str, Aboard]:
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return {}
    return _open_ones(text.splitlines())


def _open_ones(lines: Iterable[str]) -> dict[str, Aboard]:
    """What was noted last of each request that has not ended. A line that was cut off by a death counts as none."""
    found: dict[str, Aboard] = {}
    for line in lines:
        mark, _, rest = line.partition(" ")
        if mark == "-":
            found.pop(rest, None)
            continue
        with contextlib.suppress(ValueError):
            attempt, deaths, at_ms, request_id = rest.split(" ", 3)
            found[request_id] = Aboard(int(attempt), int(deaths), int(at_ms), begun=mark == "!")
    return found


def _now_ms() -> int:
    return int(time.time() * 1000)
