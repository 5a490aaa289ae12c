"""A tiny process between a backend child and its model server: none of the server's tree outlives the child.

    python -I -S backends/guard.py COMMAND [ARGUMENT…]

Standard input is the lifeline, a pipe whose other end only the child holds. A line with a number of seconds on it
is an order to stop within them; its end of file means that the child is gone, whatever killed it. Either way the whole
tree gets TERM, TERM again, KILL. Being a subreaper (prctl(2), PR_SET_CHILD_SUBREAPER), the guard is the parent of
whatever a daemonising grandchild leaves behind, so that /proc finds all of the tree below it. Should the guard itself
be killed, the kernel kills the server (PR_SET_PDEATHSIG), and the child sweeps up the rest (guarded.py).

Exit status: the server's own, 128 + N where signal N ended it, 127 where there is no such command, 126 where it
cannot be run: what a shell says.

Why a process and not a thread or an exit handler: only another process survives `kill -9` of the child.
It imports little and runs without site-packages: ready in 25 ms, 4 MiB of its own (10 resident, most of it Python's text).
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
CHILD_GONE_GRACE_S = 3.0
KILL_DEADLINE_S = 5.0
LOOK_AGAIN_S = 0.02


def main(command: list[str]) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wakeup = _wake_on_signals()
    server = _start(command, libc)
    status, grace_s = _watch(server, wakeup)
    status = _end_tree(grace_s, server, status)
    return 1 if status is None else _as_a_shell_says(status)


def _wake_on_signals() -> int:
    """A descriptor that becomes readable with each SIGCHLD or SIGTERM: a handler alone would not end a poll (PEP 475)."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writing)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    return reading


def _start(command: list[str], libc: ctypes.CDLL) -> int:
    guard = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guard:  # it died before prctl was called: that signal will never come
            os._exit(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and an ignored signal stays so over exec
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _watch(server: int, wakeup: int) -> tuple[int | None, float]:
    """Wait for the server's end or an order: its wait status, if it ended, and the seconds that its tree may take to end."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(wakeup, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if wakeup in ready and _is_term(os.read(wakeup, 4096)):
            return None, CHILD_GONE_GRACE_S
        status = _reap(server)
        if status is not None:
            return status, CHILD_GONE_GRACE_S
        if 0 in ready:
            return None, _ordered_grace_s(os.read(0, 64))


def _is_term(signals: bytes) -> bool:
    return signal.SIGTERM in signals


def _ordered_grace_s(order: bytes) -> float:
    try:
        return max(0.0, float(order))
    except ValueError:  # end of file: the child is gone
        return CHILD_GONE_GRACE_S


def _reap(server: int) -> int | None:
    """Collect every dead child, adopted ones too; the server's wait status, where it was among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == server:
            found = status


def _end_tree(grace_s: float, server: int, status: int | None) -> int | None:
    """TERM, after a third of the grace TERM again (llama.cpp waits for its streams until the second), then KILL.

    Returns the server's wait status; None where even KILL did not end it (a process stuck in the kernel).
    """
    for number, wait_s in ((signal.SIGTERM, grace_s / 3), (signal.SIGTERM, grace_s / 3), (signal.SIGKILL, KILL_DEADLINE_S)):
        deadline = time.monotonic() + wait_s
        sent: set[int] = set()
        while True:
            ended = _reap(server)
            status = status if ended is None else ended
            left = descendants(os.getpid())
            if not left:
                return status
            for pid in left - sent:  # newcomers too: a tree may still grow while it is being ended
                _signal(pid, number)
            sent |= left
            if time.monotonic() >= deadline:
                break
            time.sleep(LOOK_AGAIN_S)
    return status


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)  # a stopped process would take TERM only once it runs again
    except (ProcessLookupError, PermissionError):
        return  # gone meanwhile, or changed its user: nothing more can be done


def descendants(root: int) -> set[int]:
    """The processes below `root`, which is a subreaper: nothing can leave its tree.

    Zombies too: a zombie may be the first thread, ended, of a process whose other threads are still at it.
    """
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        children.setdefault(_parent(name), []).append(int(name))
    found: set[int] = set()
    pending = [root]
    while pending:
        below = children.get(pending.pop(), [])
        found.update(below)
        pending += below
    return found


def _parent(pid: str) -> int:
    """From /proc/PID/stat, see proc(5): the command between brackets may hold anything, brackets and blanks too."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return int(stat.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):  # ended while being read
        return 0


def _as_a_shell_says(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
