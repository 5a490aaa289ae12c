"""The log of every process of the node: loguru, to standard error, as text or JSON."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from loguru import logger

from errors import redact

if TYPE_CHECKING:
    from config import Settings

_TEXT = "{time:YYYY-MM-DD HH:mm:ss.SSS} {level:<7} {extra[process]}: {message}\n{exception}"


def set_up_log(settings: Settings, process: str) -> None:
    """`process`: who speaks. Secrets are taken out of every line, tracebacks and all, wherever they came from."""
    secrets = tuple({form for secret in settings.secrets for form in _forms(secret)})

    def write(line: str) -> None:
        sys.stderr.write(redact(line, secrets))
        sys.stderr.flush()

    logger.remove()
    logger.configure(extra={"process": process})
    logger.add(
        write,
        level="DEBUG" if settings.debug else "INFO",
        format=lambda _: _TEXT,
        serialize=settings.log_format == "json",
        backtrace=False,
        diagnose=False,  # it would print the values of variables: keys, requests
    )


def _forms(secret: str) -> list[str]:
    """As it is, and escaped as in a printed structure, in a line of JSON, or in both."""
    return [form for text in (secret, repr(secret)[1:-1]) for form in (text, json.dumps(text)[1:-1])]
