"""The latest warnings and errors of the node's log, for the page: the same one again is counted."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec
from loguru import logger

from redaction import redact

if TYPE_CHECKING:
    from loguru import Message

KEPT = 50
LONGEST = 500


class Trouble(msgspec.Struct):
    """`at_s`: the last time, since the epoch."""

    at_s: float
    level: str
    words: str
    count: int = 1


class Troubles:
    """Whoever logs adds; `latest` may be called by any thread."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self._secrets = secrets
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Trouble] = OrderedDict()

    def listen(self) -> None:
        """From now on to this process's log."""
        logger.add(self._hear, level="WARNING", format="{message}", backtrace=False, diagnose=False)

    def latest(self) -> list[Trouble]:
        """The newest first."""
        with self._lock:
            return [msgspec.structs.replace(trouble) for trouble in reversed(self._kept.values())]

    def _hear(self, message: Message) -> None:
        record = message.record
        words = redact(record["message"], self._secrets)[:LONGEST]
        gist = re.sub(r"\d+", "#", words)  # figures are no news
        with self._lock:
            earlier = self._kept.pop(gist, None)
            count = earlier.count + 1 if earlier else 1
            self._kept[gist] = Trouble(record["time"].timestamp(), record["level"].name, words, count)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
