"""`python -m tests.chaos`: exit code 0 where every promise was kept, else 1."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys

from messaging.client import leave
from tests.chaos import report
from tests.chaos.run import Options, run
from tests.real.brokers import BROKERS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long the storm lasts")
    parser.add_argument("--seed", type=int, default=None, help="the same seed, the same events; default: any")
    parser.add_argument("--pulsar", choices=["real", "embedded"], default="embedded")
    parser.add_argument("--rate", type=float, default=24.0, help="requests a second")
    parser.add_argument("--broker-every-s", type=float, default=60.0, help="between two deaths of the broker, about")
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="keep the logs of a run that passed")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 16) if given.seed is None else given.seed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # by way of every `with`: nothing is left running
    broker = BROKERS["pulsar" if given.pulsar == "real" else "embedded"]().start()
    try:
        options = Options(seed, given.minutes * 60, given.broker_every_s, given.rate, gateways=given.gateways)
        result, folder = run(options, broker, lambda line: print(line, flush=True))
    finally:
        broker.close()
    print(report.details(result))
    if result.passed and not given.keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"events and logs: {folder}")
    print(report.verdict(result))
    return 0 if result.passed else 1


def _exit_code() -> int:
    try:
        return main()
    except SystemExit as ended:  # a signal, or wrong arguments
        return ended.code if isinstance(ended.code, int) else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    leave(_exit_code())  # the Pulsar client's threads may hold up the interpreter's own way out
