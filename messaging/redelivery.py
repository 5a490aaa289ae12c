"""When a request is tried again, and when it is not: a pure decision, and the properties that carry its history."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

ATTEMPT = "workernode-attempt"
PUBLISHED_MS = "workernode-published-ms"
LAST_ERROR = "workernode-last-error"
FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 30.0


@dataclass(frozen=True)
class History:
    """`attempt`: which attempt the next computing is, from 1; `published_ms`: of the first publish, UTC."""

    attempt: int
    published_ms: int
    last_error: str = ""


def read_history(properties: dict[str, str], published_ms: int) -> History:
    """What is missing or odd counts as new: properties can come from anyone."""
    attempt, first_ms = _whole(properties.get(ATTEMPT, "")), _whole(properties.get(PUBLISHED_MS, ""))
    # Nothing was first published after it was published again: such a time would keep a request from ever expiring.
    return History(attempt or 1, min(first_ms or published_ms, published_ms), properties.get(LAST_ERROR, ""))


def merged(history: History, other: History) -> History:
    """Of two messages of one request: the attempts of both must not add up to more than are allowed for one."""
    latest = max(history, other, key=lambda each: each.attempt)
    return replace(latest, published_ms=min(history.published_ms, other.published_ms))


def _whole(value: str) -> int:
    """0 where it is no number."""
    return int(value) if re.fullmatch(r"[0-9]{1,15}", value) else 0


def write_history(history: History) -> dict[str, str]:
    return {ATTEMPT: str(history.attempt), PUBLISHED_MS: str(history.published_ms), LAST_ERROR: history.last_error[:500]}


def expired(history: History, now_ms: float, ttl_s: float) -> bool:
    return now_ms - history.published_ms > ttl_s * 1000


def next_attempt(history: History, error: str, max_attempts: int) -> History | None:
    """The history to publish it again with; None: its attempts are used up."""
    if history.attempt >= max_attempts:
        return None
    return replace(history, attempt=history.attempt + 1, last_error=error)


def delay_s(history: History, dice: random.Random) -> float:
    """Before this attempt: growing, and spread so that what failed together does not come back together."""
    longest_s: float = min(FIRST_DELAY_S * 2.0 ** min(max(0, history.attempt - 2), 30), LONGEST_DELAY_S)
    return longest_s * (0.5 + dice.random() / 2)
