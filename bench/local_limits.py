"""Which limit is best, and does the node find it? `python -m bench.local_limits [--limits 1,2,4,8,16] [--runs 3]`

Each run is a node of its own: with a fixed limit (MAX_PROCESS_NUM, LOCAL_ADAPTIVE=false), or with 16 slots and the limit
left to itself ("0"). Prints tokens a second from a few seconds after the start on, medians of the runs, and the share of the
best fixed limit that the adaptive one reached. Only seconds in which other programs used next to nothing of the CPU count;
and the adaptive limit takes no notice of them, as that is local_trace's matter. `--request-mib 100 --memory-mib 1400`: the
model server takes so much for each request, in a cgroup of so much; then it is about who stays alive. `--save FILE` adds
the runs to a file, from which those of earlier calls are taken in.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

from bench.local_node import SERVER, Scene
from tests.real.memory_group import memory_group

ADAPTIVE = 0
QUIET_SHARE = 0.15  # of other programs, of the CPU


def run(limit: int, options: argparse.Namespace) -> dict[str, Any]:
    variables = {"LOCAL_OTHERS_CPU_PERCENT": "100"} if limit == ADAPTIVE else {"LOCAL_ADAPTIVE": "false", "MAX_PROCESS_NUM": str(limit)}
    server = f"{SERVER} --request-mib {options.request_mib}"
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(memory_group(options.memory_mib)) if options.memory_mib else None
        scene = stack.enter_context(Scene(variables, server=server, cgroup=folder))
        time.sleep(options.warm_up)
        rates = quiet_seconds(scene, options.seconds, options.at_most)
        if options.memory_mib:  # until each has its end
            scene.stop_load()
            give_up_at_s = time.monotonic() + options.within
            while scene.open() and time.monotonic() < give_up_at_s:
                time.sleep(0.5)
        return {
            "limit": limit, "rate": statistics.mean(rates) if rates else 0.0, "quiet_s": len(rates), "sent": len(scene.sent),
            "open": len(scene.open()), "errors": len(scene.errors()), "deaths": scene.node.log().count("the model server died"),
            "changes": [why for _, _, why in scene.changes()],
        }  # fmt: skip


def quiet_seconds(scene: Scene, wanted: int, at_most_s: int) -> list[float]:
    """Tokens in each second in which other programs used next to nothing of the CPU."""
    found: list[float] = []
    scene.others_cpu_share()
    for _ in range(at_most_s):
        began_s = time.monotonic()
        time.sleep(1.0)
        if (scene.others_cpu_share() or 0.0) < QUIET_SHARE:
            found.append(scene.rate(began_s, time.monotonic()))
        if len(found) == wanted:
            break
    return found


def said(found: dict[str, Any]) -> str:
    name = "adaptive" if found["limit"] == ADAPTIVE else f"limit {found['limit']:>2}"
    words = f"{name}: {found['rate']:.1f} tokens/s in {found['quiet_s']} quiet seconds"
    lost = f"; {found['sent']} requests, {found['errors']} ended with an error, {found['open']} without an end"
    return words + (f"{lost}; the model server died {found['deaths']} times" if found["deaths"] or found["errors"] else "")


def summary(runs: list[dict[str, Any]]) -> None:
    runs = [found for found in runs if found["quiet_s"]]
    medians = {limit: statistics.median(r["rate"] for r in runs if r["limit"] == limit) for limit in sorted({r["limit"] for r in runs})}
    for limit, rate in medians.items():
        of_limit = [r for r in runs if r["limit"] == limit]
        name = "adaptive" if limit == ADAPTIVE else f"limit {limit}"
        ends = f"{sum(r['errors'] for r in of_limit)} errors, {sum(r['deaths'] for r in of_limit)} deaths of the model server"
        print(f"{name:<9} median {rate:5.1f} tokens/s of {len(of_limit)} runs; {ends}")
    fixed = {limit: rate for limit, rate in medians.items() if limit != ADAPTIVE}
    if fixed and ADAPTIVE in medians:
        best = max(fixed, key=lambda limit: fixed[limit])
        print(f"adaptive reaches {100 * medians[ADAPTIVE] / fixed[best]:.1f} % of the best fixed limit, {best}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.local_limits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limits", default="1,2,4,8,16,0")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--warm-up", type=float, default=6)
    parser.add_argument("--seconds", type=int, default=20, help="that count: others use next to nothing of the CPU in them")
    parser.add_argument("--at-most", type=int, default=60, help="seconds, quiet or not")
    parser.add_argument("--request-mib", type=int, default=0)
    parser.add_argument("--memory-mib", type=int, default=0)
    parser.add_argument("--within", type=float, default=60, help="seconds for what is open at the end")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    runs: list[dict[str, Any]] = json.loads(options.save.read_text()) if options.save and options.save.exists() else []
    for _ in range(options.runs):
        for limit in map(int, options.limits.split(",")):
            runs.append(run(limit, options))
            print(said(runs[-1]), flush=True)
            for why in runs[-1]["changes"]:
                print(f"    {why}", flush=True)
            if options.save:
                options.save.write_text(json.dumps(runs))
    summary(runs)


if __name__ == "__main__":
    main()
