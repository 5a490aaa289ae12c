"""The log of every process of the node: loguru, to standard error, as text, or as JSON with LOG_FORMAT=json.

Where systemd's journal reads it, each line begins with its priority, and text leaves the time to the journal.

A line of JSON is flat: `time` (UTC), `level`, `process`, `message`, then the fields of what it is about, `exception` last
where there is one. docs/log.md lists the fields.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from loguru import logger

from errors import redact

if TYPE_CHECKING:
    from loguru import Message, Record

    from config import Settings

INFO, WARNING, ERROR = 20, 30, 40  # loguru's numbers
LONGEST_BODY = 4000  # characters of a request or an answer, in a line of DEBUG
_TEXT = "{time:YYYY-MM-DD HH:mm:ss.SSS} {level:<7} {extra[process]}: {message}\n{exception}"  # as as_text()
_FOR_THE_JOURNAL = "{extra[process]}: {message}\n{exception}"
_FOR_JSON = "{exception}"  # all else is taken from the record


def set_up_log(settings: Settings, process: str) -> None:
    """`process`: who speaks. Secrets are taken out of every line, tracebacks and all, wherever they came from."""
    secrets = forms_of(settings.secrets)
    is_json, is_journal = settings.log_format == "json", goes_to_journal()
    form = _FOR_JSON if is_json else _FOR_THE_JOURNAL if is_journal else _TEXT

    def write(message: Message) -> None:
        text = json_line(message.record, str(message), secrets) if is_json else redact(message, secrets)
        sys.stderr.write(with_priority(text, message.record["level"].no) if is_journal else text)
        sys.stderr.flush()

    logger.remove()
    logger.configure(extra={"process": process})
    logger.add(
        write,
        level="DEBUG" if settings.debug else "INFO",
        format=lambda _: form,
        backtrace=False,
        diagnose=False,  # it would print the values of variables: keys, requests
    )


def say_mistakes(mistakes: list[str]) -> None:
    """Of a configuration that says not even how to log."""
    text = "".join(f"configuration: {mistake}\n" for mistake in mistakes)
    sys.stderr.write(with_priority(text, ERROR) if goes_to_journal() else text)


def goes_to_journal(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether standard error is the stream that systemd connected to its journal: it is inherited, and may be redirected."""
    try:
        stream = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # closed, or no file at all
        return False
    return environ.get("JOURNAL_STREAM") == f"{stream.st_dev}:{stream.st_ino}"


def with_priority(text: str, level: int) -> str:
    """Each line with its syslog priority (sd-daemon(3)), a traceback's lines too; `level` is loguru's number."""
    priority = 3 if level >= ERROR else 4 if level >= WARNING else 6 if level >= INFO else 7
    return "".join(f"<{priority}>{line}" for line in text.splitlines(keepends=True))


def as_text(at: datetime, level: str, process: str, message: str) -> str:
    """A line of text. `at`: local time; the message is redacted already."""
    return f"{at.isoformat(' ', 'milliseconds')} {level:<7} {process}: {message}\n"


def json_line(record: Record, exception: str, secrets: tuple[str, ...]) -> str:
    fields = dict(record["extra"])
    process = fields.pop("process", "")
    fields |= {"exception": exception.strip()} if exception.strip() else {}
    return as_json(record["time"], record["level"].name, process, record["message"], fields, secrets)


def as_json(at: datetime, level: str, process: str, message: str, fields: dict[str, Any], secrets: tuple[str, ...]) -> str:
    """A line of JSON. Each text is redacted by itself: taken out of the whole line, something could take its quotes along."""
    time = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = {"time": time, "level": level, "process": process, "message": message}
    line |= {name: value for name, value in fields.items() if name not in line}
    return json.dumps({name: _redacted(value, secrets) for name, value in line.items()}, ensure_ascii=False) + "\n"


def _redacted(value: Any, secrets: tuple[str, ...]) -> Any:
    """Of what is no plain value its text."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return redact(str(value), secrets)


def body_text(body: bytes, secrets: tuple[str, ...]) -> str:
    """A request or an answer for a line of DEBUG: decoded and encoded anew, as JSON has many ways to write a key. Secrets
    are taken out before it is cut, as half a key would be none to look at; what only looks like a key is not looked for in
    megabytes, which would take seconds."""
    try:
        text = msgspec.json.encode(msgspec.json.decode(body)).decode()
    except (ValueError, RecursionError):
        text = body.decode("utf-8", "replace")
    text = without_secrets(text, secrets)
    more = len(text) - LONGEST_BODY
    shown = redact(text[: 2 * LONGEST_BODY])[:LONGEST_BODY]
    return shown if more <= 0 else f"{shown}… and about {more:,} characters more"


def without_secrets(text: str, secrets: tuple[str, ...]) -> str:
    """These alone, in each form; for texts of megabytes."""
    for form in sorted(forms_of(secrets), key=len, reverse=True):  # one may be the beginning of another
        text = text.replace(form, "[redacted]")
    return text


def forms_of(secrets: tuple[str, ...]) -> tuple[str, ...]:
    return tuple({form for secret in secrets for form in _forms(secret)})


def _forms(secret: str) -> list[str]:
    """As it is, and escaped as in a printed structure, in a line of JSON, or in both."""
    return [form for text in (secret, repr(secret)[1:-1]) for form in (text, json.dumps(text)[1:-1])]
