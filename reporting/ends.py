"""The log's line for a request that ended: in words, and as fields of their own for LOG_FORMAT=json."""

from __future__ import annotations

from typing import Any

from loguru import logger

from reporting.usage import Ended

_SHOWN = {"queued": "queued", "waited": "waited", "to_first_token": "to first token"}


def log_end(ended: Ended) -> None:
    logger.bind(**fields(ended)).info("{}", line(ended))


def fields(ended: Ended) -> dict[str, Any]:
    """All of them in every line, null where there is nothing to say."""
    outcome, error, took_ms = ended.outcome, ended.error or {}, ended.durations_ms
    return {
        "request_id": ended.request_id,
        "outcome": outcome.end,
        "attempt": ended.attempt,
        "stream": ended.stream,
        "error_type": error.get("type"),
        "error_code": error.get("code"),
        "dead_lettered": ended.dead_lettered,
        **{f"{stage}_ms": took_ms[stage] for stage in (*_SHOWN, "total")},
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "tokens_source": outcome.tokens_source,
    }


def line(ended: Ended) -> str:
    """`request r answered in 812 ms (queued 3, waited 1, to first token 240), attempt 1, 5 + 7 tokens`"""
    outcome, took_ms = ended.outcome, ended.durations_ms
    stages = [f"{words} {took_ms[stage]:.0f}" for stage, words in _SHOWN.items() if took_ms[stage] is not None]
    source = " (estimated)" if outcome.tokens_source == "estimated" else ""
    tokens = f"{outcome.prompt_tokens} + {outcome.completion_tokens} tokens{source}"
    head = f"request {ended.request_id} {outcome.end} in {took_ms['total'] or 0.0:.0f} ms ({', '.join(stages)})"
    why = f": {ended.error.get('message')}" if ended.error else ""
    return f"{head}, attempt {ended.attempt}, {tokens}{', dead letter' if ended.dead_lettered else ''}{why}"
