"""`python -m messaging.deadletters list|show|retry`: what is in a model's dead letter topic, and a second chance for it.

Looking takes nothing away: what was received and not acknowledged is all there again once the consumer has closed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pulsar

from errors import redact
from messaging.client import leave
from messaging.line import properties_of
from messaging.redelivery import ANSWER, RETRIED, History, read_history, renewed
from messaging.tool import Failure, connected, exit_code_of
from messaging.topics import DEAD_LETTER_SUBSCRIPTION, dead_letter_topic, request_topic

if TYPE_CHECKING:
    from config import Settings

FIRST_WITHIN_MS = 2000
SILENCE_MS = 500
MOST = 5000
SHOWN_CHARACTERS = 100
_CREDENTIAL = re.compile(r"authorization|cookie|api[-_]?key|secret|password|token$", re.IGNORECASE)
_ABOUT = f"""The dead letters of MODEL_NAME: requests whose attempts or time were used up, messages that are no requests, answers that
could not be delivered. The environment is the node's; what is needed of it is PULSAR_URL, MODEL_NAME, PULSAR_TOKEN(_FILE) and
CA_BUNDLE. For a node that runs all in one, its own broker included, set PULSAR_URL=pulsar://127.0.0.1:6650.

`list` and `show` take nothing away; but while one of them runs another sees what the first does not hold. At most {MOST:,} are read."""
_RETRY = """publish them to the model's topic again, as new requests: attempt 1, all of REQUEST_TTL_S. A dead letter is acknowledged once
that is confirmed: if this is killed in between nothing is lost, and at worst it is published twice. The answer goes where the
request says; a requester that has left gets none."""


@dataclass(frozen=True)
class Letter:
    """`dead_ms`: when it became a dead letter, UTC."""

    message: pulsar.Message
    payload: bytes
    properties: dict[str, str]
    dead_ms: int

    @cached_property
    def request(self) -> Any:
        """The message as JSON; None where it is none."""
        try:
            return json.loads(self.payload)
        except (ValueError, RecursionError):
            return None

    @cached_property
    def name(self) -> str:
        """The request's id; of a message without one, its place in the topic."""
        found = self.request.get("request_id") if isinstance(self.request, dict) else None
        if isinstance(found, str) and found:
            return found
        place = self.message.message_id()
        return f"{place.ledger_id()}:{place.entry_id()}:{max(0, place.batch_index())}"

    @cached_property
    def history(self) -> History:
        return read_history(self.properties, self.dead_ms)

    @property
    def answer(self) -> str:
        return self.properties.get(ANSWER, "")


class DeadLetters:
    """The topic's letters, held while this is open. Blocks; raises pulsar.PulsarException."""

    def __init__(self, client: pulsar.Client, model: str) -> None:
        self._client, self._model = client, model
        kind, start = pulsar.ConsumerType.Shared, pulsar.InitialPosition.Earliest
        topic = dead_letter_topic(model)
        self._consumer = client.subscribe(
            topic, DEAD_LETTER_SUBSCRIPTION, consumer_type=kind, initial_position=start, receiver_queue_size=MOST
        )
        self.letters = list(self._read())

    def _read(self) -> Iterator[Letter]:
        """Until there is silence."""
        patience_ms = 0 if self._consumer.get_last_message_id().entry_id() < 0 else FIRST_WITHIN_MS
        with contextlib.suppress(pulsar.Timeout):
            for _ in range(MOST if patience_ms else 0):
                message = self._consumer.receive(patience_ms)
                patience_ms = SILENCE_MS
                yield Letter(message, message.data(), properties_of(message), message.publish_timestamp())

    def named(self, name: str) -> list[Letter]:
        return [letter for letter in self.letters if letter.name == name]

    def retry(self, letters: list[Letter]) -> Iterator[Letter]:
        """Each that is published again and acknowledged."""
        producer = self._client.create_producer(request_topic(self._model), batching_enabled=False)
        for letter in letters:
            producer.send(letter.payload, properties=renewed(letter.properties, _now_ms()))
            self._consumer.acknowledge(letter.message)
            yield letter

    def close(self) -> None:
        """All that was not acknowledged is there for others again."""
        self._consumer.close()


# what is shown


def withheld(value: Any) -> Any:
    """JSON without credentials: the values of headers and fields that are named like one, and what looks like a key."""
    if isinstance(value, dict):
        return {name: "[withheld]" if _CREDENTIAL.search(name) and found else withheld(found) for name, found in value.items()}
    if isinstance(value, list):
        return [withheld(each) for each in value]
    return redact(value) if isinstance(value, str) else value


def in_short(letter: Letter) -> dict[str, Any]:
    history = letter.history
    return {
        "request_id": letter.name, "published_ms": history.published_ms, "dead_ms": letter.dead_ms, "attempts": history.attempt,
        "deaths": history.deaths, "last_error": redact(history.last_error), "has_answer": bool(letter.answer),
    }  # fmt: skip


def in_full(letter: Letter) -> dict[str, Any]:
    """`request` is JSON, or the message's text where it is none."""
    other = {name: value for name, value in letter.properties.items() if not name.startswith("workernode-") or name == RETRIED}
    request = letter.request if letter.request is not None else letter.payload.decode("utf-8", "replace")
    trail = [redact(step) for step in letter.history.trail]
    answer = withheld(_json_or_text(letter.answer)) if letter.answer else None
    return in_short(letter) | {"trail": trail, "properties": withheld(other), "request": withheld(request), "answer": answer}


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def line_of(letter: Letter, now_ms: int) -> str:
    """`id  3m old  2 attempts  what it ended with`."""
    history = letter.history
    error = " ".join(redact(history.last_error).split()) or ("no error noted" if not letter.answer else "not delivered")
    shown = error if len(error) <= SHOWN_CHARACTERS else error[: SHOWN_CHARACTERS - 1] + "…"
    attempts = f"{history.attempt} attempt{'s' if history.attempt != 1 else ''}"
    return f"{letter.name}  {_age(now_ms - history.published_ms)} old  {attempts}  {shown}"


def _age(age_ms: int) -> str:
    seconds = max(0, age_ms) // 1000
    units = ((86400, "d"), (3600, "h"), (60, "m"))
    return next((f"{seconds // size}{unit}" for size, unit in units if seconds >= size), f"{seconds}s")


def text_of(letter: Letter) -> str:
    full = in_full(letter)
    lines = [f"request     {letter.name}"]
    lines += [f"published   {_utc(letter.history.published_ms)}", f"died        {_utc(letter.dead_ms)}"]
    lines += [f"attempts    {letter.history.attempt}", f"deaths      {letter.history.deaths} of processes that had it"]
    lines += [f"last error  {full['last_error'] or 'none noted'}", *(f"history     {step}" for step in full["trail"])]
    lines += [f"property    {name}: {value}" for name, value in full["properties"].items()]
    lines += ["message", _indented(full["request"])]
    return "\n".join(lines + (["answer, computed but not delivered", _indented(full["answer"])] if full["answer"] else []))


def _indented(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


def _utc(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at_ms / 1000))


def _now_ms() -> int:
    return int(time.time() * 1000)


# the commands


def list_all(dead: DeadLetters, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps([in_short(letter) for letter in dead.letters], ensure_ascii=False))
        return
    for letter in dead.letters:
        print(line_of(letter, _now_ms()))
    if not dead.letters:
        print("there are no dead letters", file=sys.stderr)


def show(dead: DeadLetters, options: argparse.Namespace) -> None:
    found = dead.named(options.request_id)
    if not found:
        raise Failure(f"there is no dead letter {options.request_id}")
    print(json.dumps([in_full(letter) for letter in found], ensure_ascii=False) if options.json else "\n\n".join(map(text_of, found)))


def retry(dead: DeadLetters, options: argparse.Namespace) -> None:
    unknown = [name for name in options.request_ids if not dead.named(name)]
    letters = dead.letters if options.all else [letter for name in dict.fromkeys(options.request_ids) for letter in dead.named(name)]
    for done, letter in enumerate(dead.retry(letters), 1):
        print(f"{letter.name} was published again ({done} of {len(letters)})", flush=True)
    if unknown:
        raise Failure(f"there is no dead letter {', '.join(unknown)}")
    if not letters:
        print("there are no dead letters", file=sys.stderr)


def parse(arguments: list[str]) -> argparse.Namespace:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m messaging.deadletters", description=_ABOUT, formatter_class=plain)
    commands = parser.add_subparsers(required=True, metavar="list|show|retry")
    listing = commands.add_parser("list", help="a line for each: id, age, attempts, last error")
    showing = commands.add_parser("show", help="one, whole: its history, the message without credentials, the answer that was kept")
    showing.add_argument("request_id")
    for command, run in ((listing, list_all), (showing, show)):
        command.add_argument("--json", action="store_true", help="for machines: one JSON array, times in UTC milliseconds")
        command.set_defaults(run=run)
    retrying = commands.add_parser("retry", help="publish them again as new requests", description=_RETRY, formatter_class=plain)
    retrying.add_argument("request_ids", nargs="*", metavar="REQUEST_ID")
    retrying.add_argument("--all", action="store_true", help="all that there are")
    retrying.set_defaults(run=retry)
    options = parser.parse_args(arguments)
    if options.run is retry and options.all == bool(options.request_ids):
        retrying.error("say which: REQUEST_ID… or --all")
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)

    def run(settings: Settings) -> None:
        with connected(settings) as client, contextlib.closing(DeadLetters(client, settings.model_name)) as dead:
            options.run(dead, options)

    return exit_code_of(run)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
