"""`python -m reporting.usage`: the sums of the usage records on RES_TOPIC_NAME, as a table.

A Pulsar reader reads them: it has no subscription that would hold a backlog, and takes nothing from others.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import pulsar

from messaging.client import leave
from messaging.handshake import find_trouble
from messaging.tool import connected, exit_code_of
from reporting.sums import Sums, as_json, table

if TYPE_CHECKING:
    from config import Settings

WAIT_MS = 300
SHOWN_EACH_S = 1.0
LOOKED_AT_EACH_S = 10.0  # of silence: is Pulsar still there?
_CLEARED = "\x1b[H\x1b[2J"
_ABOUT = """The sums of the usage records on RES_TOPIC_NAME, for each model and outcome: requests, tokens, how many of these were
estimated as the upstream reported none, and repeats. Each request is counted once, by its first record.

The environment is the node's; what is needed of it is PULSAR_URL, RES_TOPIC_NAME, PULSAR_TOKEN(_FILE) and CA_BUNDLE. For a node
that runs all in one, its own broker included, set PULSAR_URL=pulsar://127.0.0.1:6650.

Pulsar keeps a record only for as long as a subscription waits for it, or a retention policy says so. This has no subscription, so
that nothing piles up for it: what was forgotten before it began is not counted."""


class Records:
    """The topic, from its oldest record or from now on. Blocks; raises pulsar.PulsarException."""

    def __init__(self, client: pulsar.Client, topic: str, *, earliest: bool) -> None:
        self._reader = client.create_reader(topic, pulsar.MessageId.earliest if earliest else pulsar.MessageId.latest)

    def read(self, sums: Sums) -> bool:
        """One more; False where none came in WAIT_MS."""
        try:
            sums.add(self._reader.read_next(WAIT_MS).data())
        except pulsar.Timeout:
            return False
        return True

    def has_more(self) -> bool:
        return bool(self._reader.has_message_available())


class Screen:
    """Where the sums are shown: a terminal is written over, for anything else each state is added."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._between = "" if as_json else _CLEARED if sys.stdout.isatty() else "\n"
        self._before = ""

    def show(self, sums: Sums) -> None:
        text = json.dumps(as_json(sums), ensure_ascii=False) if self._as_json else table(sums)
        print(self._before + text, flush=True)
        self._before = self._between


class QueueWatch:
    """Says once when Pulsar is away, and once when it is back. The client itself tries again and again in silence."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._trouble = settings, ""
        self._look_at_s = time.monotonic() + LOOKED_AT_EACH_S

    def heard(self) -> None:
        self._look_at_s = time.monotonic() + LOOKED_AT_EACH_S
        self._say("")

    def silent(self) -> None:
        if time.monotonic() >= self._look_at_s:
            trouble = find_trouble(self._settings)
            self._look_at_s = time.monotonic() + LOOKED_AT_EACH_S
            self._say(trouble.message if trouble else "")

    def _say(self, trouble: str) -> None:
        if bool(trouble) != bool(self._trouble):
            print(trouble or "Pulsar is back", file=sys.stderr, flush=True)
        self._trouble = trouble


def count_once(records: Records, sums: Sums, is_over: Callable[[], bool]) -> None:
    while not is_over() and records.has_more():
        records.read(sums)


def follow(records: Records, sums: Sums, is_over: Callable[[], bool], show: Callable[[Sums], None], watch: QueueWatch) -> None:
    """Shows the sums when they have changed, at most each SHOWN_EACH_S."""
    is_new, next_s = True, 0.0
    while not is_over():
        if records.read(sums):
            is_new = True
            watch.heard()
        else:
            watch.silent()
        if is_new and time.monotonic() >= next_s:
            show(sums)
            is_new, next_s = False, time.monotonic() + SHOWN_EACH_S


def parse(arguments: list[str]) -> argparse.Namespace:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m reporting.usage", description=_ABOUT, formatter_class=plain)
    parser.add_argument("--from", dest="start", choices=("earliest", "latest"), help="where to begin (earliest)", default="earliest")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--once", action="store_true", help="print the sums of what is there, and end")
    ways.add_argument("--follow", action="store_true", help="go on until Ctrl-C (so it is without --once)")
    parser.add_argument("--json", action="store_true", help="for machines: one JSON object a line")
    options = parser.parse_args(arguments)
    if options.once and options.start == "latest":
        parser.error("--once counts what is there already, which --from latest leaves out")
    return options


def run(settings: Settings, options: argparse.Namespace, is_over: Callable[[], bool]) -> None:
    """Raises Failure and pulsar.PulsarException; what was counted by then is shown all the same."""
    screen, sums = Screen(as_json=options.json), Sums()
    with connected(settings) as client:
        records = Records(client, settings.res_topic_name, earliest=options.start == "earliest")
        try:
            if options.once:
                count_once(records, sums, is_over)
            else:
                follow(records, sums, is_over, screen.show, QueueWatch(settings))
        finally:
            screen.show(sums)


def main() -> NoReturn:
    """Ctrl-C and SIGTERM only say that it is over: an interrupted read would swallow a record."""
    options, over = parse(sys.argv[1:]), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    leave(exit_code_of(lambda settings: run(settings, options, over.is_set)))
