"""Poisonous requests among good ones, at full size: `python -m bench.poison [--good 5000] [--poisonous 50]`.

Starts an embedded broker, an upstream that kills whoever asks it a poisonous request, and a node. Checks what
tests/acceptance/test_deaths.py checks at a smaller size, and prints what was seen."""

from __future__ import annotations

import argparse

from tests.acceptance.test_deaths import poison_run
from tests.real.embedded_broker import EmbeddedBroker
from tests.real.upstream import Upstream


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.poison", description=__doc__)
    parser.add_argument("--good", type=int, default=5000)
    parser.add_argument("--poisonous", type=int, default=50)
    parser.add_argument("--within", type=float, default=600, help="seconds")
    options = parser.parse_args()
    broker = EmbeddedBroker().start()
    try:
        with Upstream() as upstream:
            print(poison_run(broker, upstream, options.good, options.poisonous, options.within))
    finally:
        broker.close()


if __name__ == "__main__":
    main()
