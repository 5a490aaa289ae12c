"""When a request is tried again, and when it is not: a pure decision, and the properties that carry its history."""

from __future__ import annotations

import random
import re

import msgspec
from msgspec.structs import replace

ATTEMPT = "workernode-attempt"
PUBLISHED_MS = "workernode-published-ms"
DEATHS = "workernode-deaths"
LAST_ERROR = "workernode-last-error"
TRAIL = "workernode-trail"
ANSWER = "workernode-answer"
RETRIED = "workernode-retried"
_OURS = "workernode-"
ALONE_FROM_DEATHS = 2
KEPT_STEPS, KEPT_CHARACTERS = 10, 200
FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 30.0


class History(msgspec.Struct, frozen=True):
    """`attempt`: which attempt the next computing is, from 1; `published_ms`: of the first publish, UTC; `deaths`: how
    many processes died with it aboard; `trail`: what each attempt ended with, for whoever reads a dead letter."""

    attempt: int
    published_ms: int
    last_error: str = ""
    deaths: int = 0
    trail: tuple[str, ...] = ()

    @property
    def runs_alone(self) -> bool:
        """It may be what killed them: it takes nobody else's work along a third time."""
        return self.deaths >= ALONE_FROM_DEATHS


def read_history(properties: dict[str, str], published_ms: int) -> History:
    """What is missing or odd counts as new: properties can come from anyone."""
    if not properties:
        return History(1, published_ms)
    attempt, first_ms = _whole(properties.get(ATTEMPT, "")), _whole(properties.get(PUBLISHED_MS, ""))
    # Nothing was first published after it was published again: such a time would keep a request from ever expiring.
    trail = tuple(line for line in properties.get(TRAIL, "").split("\n") if line)
    first_ms = min(first_ms or published_ms, published_ms)
    return History(attempt or 1, first_ms, properties.get(LAST_ERROR, ""), _whole(properties.get(DEATHS, "")), trail)


def merged(history: History, other: History) -> History:
    """Of two messages of one request: the attempts of both must not add up to more than are allowed for one."""
    latest = max(history, other, key=lambda each: each.attempt)
    first_ms, deaths = min(history.published_ms, other.published_ms), max(history.deaths, other.deaths)
    return replace(latest, published_ms=first_ms, deaths=deaths)


def _whole(value: str) -> int:
    """0 where it is no number."""
    return int(value) if re.fullmatch(r"[0-9]{1,15}", value) else 0


def write_history(history: History) -> dict[str, str]:
    properties = {ATTEMPT: str(history.attempt), PUBLISHED_MS: str(history.published_ms), LAST_ERROR: history.last_error[:500]}
    properties |= {DEATHS: str(history.deaths)} if history.deaths else {}
    return properties | ({TRAIL: "\n".join(history.trail)} if history.trail else {})


def renewed(properties: dict[str, str], now_ms: int) -> dict[str, str]:
    """Of a dead letter that is published again: none of its history, so that it is attempt 1 with all its time, and a
    mark by which a node that remembers its end takes it for a request of its own."""
    return {name: value for name, value in properties.items() if not name.startswith(_OURS)} | {RETRIED: str(now_ms)}


def identity(request_id: str, properties: dict[str, str]) -> str | None:
    """What a node knows a request by; None where it has no id. One that is retried is another than the one that ended."""
    retried = properties.get(RETRIED, "")
    return (f"{request_id} retried {retried}" if retried else request_id) or None


def noted(history: History, error: str, where: str) -> History:
    """With one more step on its trail: `attempt 2, host-17: what it ended with`."""
    step = " ".join(f"attempt {history.attempt}, {where}: {error}".split())[:KEPT_CHARACTERS]
    return replace(history, last_error=error, trail=(*history.trail, step)[-KEPT_STEPS:])


def expired(history: History, now_ms: float, ttl_s: float) -> bool:
    return now_ms - history.published_ms > ttl_s * 1000


def next_attempt(history: History, max_attempts: int) -> History | None:
    """The history to publish it again with; None: its attempts are used up."""
    return None if history.attempt >= max_attempts else replace(history, attempt=history.attempt + 1)


def delay_s(history: History, dice: random.Random) -> float:
    """Before this attempt: growing, and spread so that what failed together does not come back together."""
    longest_s: float = min(FIRST_DELAY_S * 2.0 ** min(max(0, history.attempt - 2), 30), LONGEST_DELAY_S)
    return longest_s * (0.5 + dice.random() / 2)
