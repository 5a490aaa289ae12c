"""`python -m tests.fuzz --answers 200000 --seed 1`: fuzzed answers through a real child; `--only N` replays one of them.
`--gateway`: fuzzed clients before a real gateway."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time

from tests.fuzz.answers import case
from tests.fuzz.gateway import FuzzedGateway
from tests.fuzz.run import AT_ONCE, Fuzzed, Result
from tests.real.node import NodeProcess

SAID_EACH = 5000
MOST_SHOWN = 50
BEHIND = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="this case, with what it sends, and a few behind it")
    parser.add_argument("--gateway", action="store_true", help="fuzzed clients before a real gateway instead")
    parser.add_argument("--at-once", type=int, default=AT_ONCE)
    given = parser.parse_args()
    if given.gateway:
        return _before_a_gateway(given.seed, given.first, given.answers)
    with Fuzzed(given.seed, given.at_once) as fuzzed:
        if given.only is not None:
            print(case(given.seed, given.only))
            result = fuzzed.ask([given.only, *range(given.only + 1, given.only + 1 + BEHIND)])
            _show(result.wrong, given.seed)
        else:
            result = _all(fuzzed, given.seed, given.first, given.answers)
    _report(result)
    return 1 if result.wrong else 0


def _before_a_gateway(seed: int, first: int, count: int) -> int:
    with tempfile.TemporaryDirectory() as state, NodeProcess({"STATE_DIR": state}, gateway=True) as node:
        fuzzed = FuzzedGateway(node, seed)
        for start in range(first, first + count, SAID_EACH):
            known = len(fuzzed.result.wrong)
            result = fuzzed.send(range(start, min(start + SAID_EACH, first + count)))
            _show(result.wrong[known:], seed)
            print(f"{result}, {fuzzed.rss_bytes >> 20} MiB, {fuzzed.connections} connections", flush=True)
        result = fuzzed.hold(500, 30.0)
    print(f"with 500 slow connections for 30 s: {result}")
    return 1 if result.wrong else 0


def _all(fuzzed: Fuzzed, seed: int, first: int, count: int) -> Result:
    started_s = time.monotonic()
    for start in range(first, first + count, SAID_EACH):
        known = len(fuzzed.result.wrong)
        result = fuzzed.ask(range(start, min(start + SAID_EACH, first + count)))
        _show(result.wrong[known:], seed)
        took_s = time.monotonic() - started_s
        print(f"{result.answers:,} answers in {took_s:.0f} s, {result.answers / took_s:.0f}/s, {len(result.wrong)} wrong", flush=True)
    return fuzzed.result


def _show(wrong: list[tuple[int, str]], seed: int) -> None:
    for number, what in wrong[:MOST_SHOWN]:
        print(f"seed {seed} number {number}: {what}")


def _report(result: Result) -> None:
    counts = f"{len(result.wrong)} wrong, {result.again} asked again, {result.overtaken} overtaken"
    print(f"{result.answers:,} answers, {counts}, {result.took_s:.0f} s: {dict(result.ends)}")


if __name__ == "__main__":
    sys.exit(main())
