"""How soon a model server is back: `python -m bench.local_faults [--runs 3]`, with SmolLM2 under load.

It is killed, stopped, and made to refuse. Prints its load time (from the node's start of its child until it is ready), how
long after the fault the first token of the new one came, and what became of the requests.
"""

from __future__ import annotations

import argparse
import re
import signal
import statistics
import time
import urllib.request
from collections.abc import Callable

import psutil

from bench.local_node import Scene
from tests.real.processes import wait_until

FAULTS: dict[str, Callable[[psutil.Process], object]] = {
    "killed": lambda server: server.send_signal(signal.SIGKILL),
    "stopped": lambda server: server.suspend(),
    "refusing": lambda server: urllib.request.urlopen(urllib.request.Request(f"{_url(server)}/refuse", b"{}", method="PUT"), timeout=5),
}
_READY = re.compile(r"backend 0 is ready after ([\d.]+) s")


def _url(server: psutil.Process) -> str:
    words = server.cmdline()
    return f"http://127.0.0.1:{words[words.index('--port') + 1]}"


def server_of(scene: Scene) -> psutil.Process:
    return next(p for p in scene.node.tree() if "bench.local_server" in p.cmdline() and "guard.py" not in " ".join(p.cmdline()))


def run(scene: Scene, fault: str) -> tuple[float, float]:
    """The load time of the server that came after, and how long after the fault its first token was there; seconds."""
    server, loads = server_of(scene), len(_READY.findall(scene.node.log()))
    FAULTS[fault](server)
    at_s = time.monotonic()
    wait_until(lambda: len(_READY.findall(scene.node.log())) > loads, within_s=60, what="a new model server", every_s=0.01)
    load_s = float(_READY.findall(scene.node.log())[-1])
    ready_s = time.monotonic()
    first_s = wait_until(lambda: next((t for t in scene.token_times() if t > ready_s), None), within_s=60, what="a token", every_s=0.02)
    time.sleep(5)
    words = f"ready {ready_s - at_s:.2f} s after it, first token after {first_s - at_s:.2f} s; loading took {load_s:.2f} s"
    print(f"{fault}: {words}", flush=True)
    return load_s, ready_s - at_s


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.local_faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with Scene({"MAX_PROCESS_NUM": "4"}, waiting=2) as scene:
        time.sleep(5)
        found = {fault: [run(scene, fault) for _ in range(options.runs)] for fault in FAULTS}
        scene.stop_load()
        wait_until(lambda: not scene.open(), within_s=120, what="an end of each request", every_s=0.5)
        errors = scene.errors()
        ends = f"{len(scene.sent)} requests, each with an end; {len(errors)} of them an error, as their streams had begun"
    for fault, runs in found.items():
        over = [took_s - load_s for load_s, took_s in runs]
        print(f"{fault}: back within its load time + {statistics.median(over):.2f} s (median of {len(runs)}), at most + {max(over):.2f}")
    print(ends, sorted(set(errors)))


if __name__ == "__main__":
    main()
