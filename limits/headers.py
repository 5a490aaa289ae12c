"""What an upstream's headers say of its rate limits."""

from __future__ import annotations

import re
from collections.abc import Mapping

from errors import go_duration_s
from ipc.messages import Level

_PREFIX = "x-ratelimit-"


def levels(headers: Mapping[str, str]) -> tuple[Level | None, Level | None]:
    """Of requests and of tokens; names of headers in lower case. What is odd counts as not said."""
    if not any(name.startswith(_PREFIX) for name in headers):
        return None, None
    return _level(headers, "requests"), _level(headers, "tokens")


def _level(headers: Mapping[str, str], what: str) -> Level | None:
    remaining = _number(headers.get(f"{_PREFIX}remaining-{what}", ""))
    if remaining is None:
        return None
    reset_s = go_duration_s(headers.get(f"{_PREFIX}reset-{what}", ""))
    return Level(remaining, _number(headers.get(f"{_PREFIX}limit-{what}", "")), reset_s)


def _number(value: str) -> float | None:
    return float(value) if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", value) else None
