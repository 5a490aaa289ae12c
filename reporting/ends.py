"""The log's line for a request that ended: in words, and as fields of their own for LOG_FORMAT=json.

Written past loguru, which asks for caller, thread and level of each line: that took longer than all else that the node does at
a request's end.
"""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from errors import redact
from reporting.log import INFO, as_json, as_text, forms_of, goes_to_journal, with_priority
from reporting.usage import Ended

if TYPE_CHECKING:
    from config import Settings

_SHOWN = {"queued": "queued", "waited": "waited", "to_first_token": "to first token"}
_UUID = re.compile(r"[0-9a-f-]{36}")


class EndLog:
    """`process`: who speaks. Lines wait for `flush`, as to write each would cost more than to make it."""

    def __init__(self, settings: Settings, process: str = "node") -> None:
        self._is_json, self._is_journal, self._process = settings.log_format == "json", goes_to_journal(), process
        self._secrets = forms_of(settings.secrets)
        self._unsaid: list[str] = []

    def say(self, ended: Ended) -> None:
        text = self._json(ended) if self._is_json else self._text(ended)
        self._unsaid.append(with_priority(text, INFO) if self._is_journal else text)

    def flush(self) -> None:
        if self._unsaid:
            sys.stderr.write("".join(self._unsaid))
            sys.stderr.flush()
            self._unsaid.clear()

    def _json(self, ended: Ended) -> str:
        return as_json(datetime.now(UTC), "INFO", self._process, line(ended), fields(ended), self._secrets)

    def _text(self, ended: Ended) -> str:
        words = line(ended) if _is_plain(ended) else redact(line(ended), self._secrets)
        return f"{self._process}: {words}\n" if self._is_journal else as_text(datetime.now(), "INFO", self._process, words)


def _is_plain(ended: Ended) -> bool:
    """All in its line is the node's own, and the id a UUID."""
    return ended.error is None and _UUID.fullmatch(ended.request_id) is not None


def fields(ended: Ended) -> dict[str, Any]:
    """All of them in every line, null where there is nothing to say."""
    outcome, error, took = ended.outcome, ended.error or {}, ended.took
    return {
        "request_id": ended.request_id,
        "outcome": outcome.end,
        "attempt": ended.attempt,
        "stream": ended.stream,
        "error_type": error.get("type"),
        "error_code": error.get("code"),
        "dead_lettered": ended.dead_lettered,
        **{f"{stage}_ms": getattr(took, stage) for stage in (*_SHOWN, "total")},
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "tokens_source": outcome.tokens_source,
    }


def line(ended: Ended) -> str:
    """`request r answered in 812 ms (queued 3, waited 1, to first token 240), attempt 1, 5 + 7 tokens`"""
    outcome, took = ended.outcome, ended.took
    stages = [f"{words} {ms:.0f}" for stage, words in _SHOWN.items() if (ms := getattr(took, stage)) is not None]
    source = " (estimated)" if outcome.tokens_source == "estimated" else ""
    tokens = f"{outcome.prompt_tokens} + {outcome.completion_tokens} tokens{source}"
    head = f"request {ended.request_id} {outcome.end} in {took.total or 0.0:.0f} ms ({', '.join(stages)})"
    why = f": {ended.error.get('message')}" if ended.error else ""
    return f"{head}, attempt {ended.attempt}, {tokens}{', dead letter' if ended.dead_lettered else ''}{why}"
