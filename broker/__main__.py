"""`python -m broker`: the embedded broker by itself."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from loguru import logger

from broker.options import Options
from broker.server import serve

TOKEN_VARIABLE = "PULSAR_TOKEN"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 after SIGTERM or Ctrl-C, 78 where something that was asked for cannot be had."""
    logger.remove()
    logger.add(sys.stderr, format="{time:YYYY-MM-DD HH:mm:ss.SSS} {level:<7} broker: {message}", level="INFO", diagnose=False)
    asked = _parser().parse_args(arguments)
    try:
        token = asked.token_file.read_text(encoding="utf-8").strip() if asked.token_file else os.environ.get(TOKEN_VARIABLE, "").strip()
    except (OSError, UnicodeDecodeError) as error:
        logger.error("--token-file should be a readable text file: {}", error)
        return os.EX_CONFIG
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return serve(Options(asked.data, asked.host, asked.port, asked.admin_port, token), lambda: None, stop)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m broker", description="A small broker that speaks Pulsar's protocol, for one machine.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on [%(default)s]")
    parser.add_argument("--port", type=int, default=6650, help="for Pulsar's clients; 0: a free one [%(default)s]")
    parser.add_argument("--admin-port", type=int, default=8080, help="for admin requests over HTTP; 0: a free one [%(default)s]")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the messages")
    parser.add_argument("--token-file", type=Path, help=f"file with the token that clients must bring [{TOKEN_VARIABLE}]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
