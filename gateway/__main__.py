"""`python -m gateway`: the gateway by itself."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading

import config
from gateway.server import serve
from messaging.client import leave
from reporting.log import set_up_log


def main() -> int:
    """Returns the exit code: 0, or 78 where the configuration is wrong."""
    argparse.ArgumentParser(
        prog="python -m gateway",
        description="OpenAI's chat completions over a Pulsar queue.",
        epilog="environment:\n" + config.help_text().replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    try:
        settings = config.load(gateway_alone=True)
    except config.ConfigurationMistakes as mistakes:
        print(mistakes, file=sys.stderr)
        return os.EX_CONFIG
    set_up_log(settings, "gateway")
    stop = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: stop.set())
    return serve(settings, lambda: None, stop)


if __name__ == "__main__":
    leave(main())
