"""The limit while hogs come and go: `python -m bench.local_trace [--png FILE] [--json FILE]`, as root or with a cgroup of one's own.

A node with the limit left to itself, in a cgroup of --memory-mib together with a memory hog, beside which a CPU hog starts
later, each for HOG_S. Prints how long after a hog's start the limit was down, how long after its end it was back where it
had been, and what became of the requests. With --png the trace is drawn (needs requirement-bench.txt).
On a machine with an NVIDIA GPU: `--hogs GPU --memory-mib 0 --mock`, a hog that takes the GPU's memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from bench.local_node import SERVER, SLOTS, Scene
from tests.real.memory_group import join, memory_group, used_mib

WARM_UP_S, HOG_S, AFTER_S = 40.0, 20.0, 35.0  # a shortage soon after a raise counts as the raise's doing
LEFT_MIB = 70  # what the memory hog leaves of the cgroup: two thirds of the reserve of 5 %; with less, the kernel ends the hog
STEP_MIB = 500
LOOK_EACH_S = 0.25
MOCK = f"{sys.executable} -m tests.real.upstream --port {{port}} --slots {SLOTS} --everybody 'mock?tokens=48&gap=100ms'"
LEFT_ON_GPU_MIB = 600
HOG = """
import sys, time
held = []
for line in sys.stdin:
    held += [b"x" * (1 << 20) for _ in range(int(line))]
    print(flush=True)
"""
GPU_HOG = """
import ctypes, sys, time
cuda = ctypes.CDLL("libcuda.so.1")
context, at, free, total = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
def call(name, *arguments):
    if error := getattr(cuda, name)(*arguments):
        sys.exit(f"{name} failed with CUDA's error {error}")
call("cuInit", 0)
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
call("cuCtxSetCurrent", context)
call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
call("cuMemAlloc_v2", ctypes.byref(at), ctypes.c_size_t(free.value - (int(sys.argv[1]) << 20)))
time.sleep(3600)
"""


def trace(memory_mib: int, hogs: list[str], *, mock: bool) -> dict[str, Any]:
    variables = {} if "CPU" in hogs else {"LOCAL_OTHERS_CPU_PERCENT": "100"}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(memory_group(memory_mib)) if memory_mib else None
        scene = stack.enter_context(Scene(variables, server=MOCK if mock else SERVER, cgroup=folder))
        looks: list[tuple[float, float, float]] = []
        began_s = time.monotonic()

        def look_until(end_s: float) -> None:
            while time.monotonic() < end_s:
                used = used_mib(folder) if folder else psutil.virtual_memory().used / (1 << 20)
                looks.append((time.monotonic() - began_s, used, float(len(scene.open()))))
                time.sleep(LOOK_EACH_S)

        look_until(began_s + WARM_UP_S)
        times = {}
        for hog in hogs:
            if hog == "memory":
                assert folder is not None, "a memory hog needs --memory-mib"
                times[hog] = _memory_hog(folder, memory_mib, look_until)
            else:
                times[hog] = _gpu_hog(look_until) if hog == "GPU" else _cpu_hog(look_until)
            look_until(time.monotonic() + AFTER_S)
        scene.stop_load()
        give_up_at_s = time.monotonic() + 60
        while scene.open() and time.monotonic() < give_up_at_s:
            time.sleep(0.5)
        return {
            "memory_mib": memory_mib, "looks": looks, "tokens": [at_s - began_s for at_s in scene.token_times()],
            "changes": [(at_s - began_s, limit, why) for at_s, limit, why in scene.changes()],
            "hogs": {name: [at_s - began_s for at_s in both] for name, both in times.items()},
            "sent": len(scene.sent), "open": len(scene.open()), "errors": scene.errors(),
            "deaths": scene.node.log().count("the model server died"),
        }  # fmt: skip


def _memory_hog(folder: Path, memory_mib: int, look_until: Any) -> tuple[float, float]:
    """It takes what there is, up to LEFT_MIB, in steps as a program does that loads something: the next once one is done."""
    hog = subprocess.Popen([sys.executable, "-c", HOG], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert hog.stdin is not None and hog.stdout is not None
    join(folder, hog.pid)
    started_s = time.monotonic()
    while time.monotonic() < started_s + HOG_S:
        if (wanted := int(memory_mib - LEFT_MIB - used_mib(folder))) > 0:
            hog.stdin.write(f"{min(wanted, STEP_MIB)}\n")
            hog.stdin.flush()
            hog.stdout.readline()
        look_until(time.monotonic() + LOOK_EACH_S)
    hog.kill()
    hog.wait()
    return started_s, time.monotonic()


def _gpu_hog(look_until: Any) -> tuple[float, float]:
    """It takes the first GPU's memory, up to LEFT_ON_GPU_MIB."""
    hog = subprocess.Popen([sys.executable, "-c", GPU_HOG, str(LEFT_ON_GPU_MIB)])
    started_s = time.monotonic()
    look_until(started_s + HOG_S)
    if hog.poll() is not None:
        raise RuntimeError("the hog could not take the GPU's memory: its error is above")
    hog.kill()
    hog.wait()
    return started_s, time.monotonic()


def _cpu_hog(look_until: Any) -> tuple[float, float]:
    """As many as there are cores, twice: the model has threads on each of them."""
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    started_s = time.monotonic()
    look_until(started_s + HOG_S)
    for hog in hogs:
        hog.kill()
        hog.wait()
    return started_s, time.monotonic()


def summary(found: dict[str, Any]) -> None:
    for at_s, _, why in found["changes"]:
        print(f"{at_s:6.1f} s  {why}")
    for name, (start_s, end_s) in found["hogs"].items():
        before = _limit_at(found, start_s)
        down = next((at_s - start_s for at_s, limit, _ in found["changes"] if start_s < at_s < end_s and limit < before), None)
        least = min([limit for at_s, limit, _ in found["changes"] if start_s < at_s < end_s], default=before)
        back = next((at_s - end_s for at_s, limit, _ in found["changes"] if at_s > end_s and limit >= before), None)
        print(f"{name} hog: the limit was {before}, down after {_s(down)}, to {least}, and back {_s(back)} after the hog's end")
    ends = f"{len(found['errors'])} errors, {found['open']} without an end, {found['deaths']} deaths of the model server"
    print(f"{found['sent']} requests: {ends}")


def _s(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f} s"


def _limit_at(found: dict[str, Any], at_s: float) -> int:
    return int([4, *(limit for changed_s, limit, _ in found["changes"] if changed_s <= at_s)][-1])


def draw(found: dict[str, Any], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    limit, memory, tokens = figure.subplots(3, 1, sharex=True)
    end_s = found["looks"][-1][0]
    times, limits = [0.0], [_limit_at(found, 0.0)]
    for at_s, to, _ in found["changes"]:
        times, limits = [*times, at_s], [*limits, to]
    limit.step([*times, end_s], [*limits, limits[-1]], where="post", color="tab:blue")
    limit.set_ylabel("limit, requests at once")
    limit.set_ylim(0)
    memory.plot([at_s for at_s, _, _ in found["looks"]], [used for _, used, _ in found["looks"]], color="tab:purple")
    if found["memory_mib"]:
        memory.axhline(found["memory_mib"], color="tab:red", linestyle="--")
    memory.set_ylabel("MiB used in the cgroup\n(red: its limit)" if found["memory_mib"] else "MiB used in the machine")
    memory.set_ylim(0)
    tokens.hist(found["tokens"], bins=[float(n) for n in range(int(end_s) + 1)], color="tab:green")
    tokens.set_ylabel("tokens in each second")
    tokens.set_xlabel("seconds")
    for name, (start_s, stop_s) in found["hogs"].items():
        for axes in (limit, memory, tokens):
            axes.axvspan(start_s, stop_s, color="tab:orange", alpha=0.2)
        limit.text((start_s + stop_s) / 2, 0.3, f"{name} hog", ha="center")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.local_trace", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory-mib", type=int, default=2048)
    parser.add_argument("--hogs", default="memory,CPU", help="in their order; without the CPU's, others' use of it does not count")
    parser.add_argument("--mock", action="store_true", help="a model server that only waits, for a machine that has other things to do")
    parser.add_argument("--png", type=Path)
    parser.add_argument("--json", type=Path, help="written to; with --again read from, instead of a run")
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    found = json.loads(options.json.read_text()) if options.again else trace(options.memory_mib, options.hogs.split(","), mock=options.mock)
    if options.json and not options.again:
        options.json.write_text(json.dumps(found))
    summary(found)
    if options.png:
        draw(found, options.png)


if __name__ == "__main__":
    main()
