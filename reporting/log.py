"""The log of every process of the node: loguru, to standard error, as text or JSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from loguru import logger

from errors import redact

if TYPE_CHECKING:
    from loguru import Record

    from config import Settings

_TEXT = "{time:YYYY-MM-DD HH:mm:ss.SSS} {level:<7} {extra[process]}: {message}\n{exception}"


def set_up_log(settings: Settings, process: str) -> None:
    """`process`: who speaks. Secrets are taken out of every line, wherever they came from."""
    secrets = settings.secrets

    def patch(record: Record) -> None:
        record["message"] = redact(record["message"], secrets)

    logger.remove()
    logger.configure(patcher=patch, extra={"process": process})
    logger.add(
        sys.stderr,
        level="DEBUG" if settings.debug else "INFO",
        format=lambda _: _TEXT,
        serialize=settings.log_format == "json",
        backtrace=False,
        diagnose=False,  # it would print the values of variables: keys, requests
    )
