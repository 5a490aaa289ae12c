"""Usage records: one for each request that ended, for billing. Pure: from what is known to the bytes to publish.

`python -m reporting.usage` reads them again and prints their sums (reporting/reader.py).
"""

from __future__ import annotations

import hashlib
import os
import socket
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from errors import redact
from ipc.messages import Outcome

if TYPE_CHECKING:
    from config import Settings

SCHEMA_VERSION = 1
NODE_VERSION = "0.1.0"
LONGEST_TEXT = 200  # of what others have said
_STAGES = {
    "queued": ("published", "received"),
    "waited": ("received", "dispatched"),
    "prepared": ("dispatched", "upstream_sent"),
    "to_first_token": ("upstream_sent", "first_token"),
    "generated": ("first_token", "last_token"),
    "delivered": ("last_token", "answered"),
    "total": ("received", "answered"),
}
_CLIENT_HEADERS = ("user-agent", "x-forwarded-for", "x-real-ip", "x-request-id")  # never Authorization or cookies


@dataclass(frozen=True)
class Ended:
    """A request that ended. Times are UTC milliseconds. `known_as`: its id, or that of a dead letter's retry; `error`: why
    it has no result, where it has none; `trail`: what its attempts ended with."""

    request_id: str
    known_as: str
    stream: bool
    metadata: dict[str, Any] | None
    attempt: int
    published_ms: float
    received_ms: float
    dispatched_ms: float | None
    outcome: Outcome
    error: dict[str, Any] | None = None
    dead_lettered: bool = False
    trail: tuple[str, ...] = ()
    traceparent: str = ""

    @cached_property
    def timestamps_ms(self) -> dict[str, float | None]:
        outcome = self.outcome
        return {
            "published": self.published_ms,
            "received": self.received_ms,
            "dispatched": self.dispatched_ms,
            "upstream_sent": outcome.upstream_sent_ms,
            "first_token": outcome.first_token_ms,
            "last_token": outcome.last_token_ms,
            "answered": outcome.answered_ms,
        }

    @cached_property
    def durations_ms(self) -> dict[str, float | None]:
        at = self.timestamps_ms
        return {name: _between(at[start], at[end]) for name, (start, end) in _STAGES.items()}


def node_id() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def record(ended: Ended, settings: Settings, node: str) -> bytes:
    """The record as JSON; its fields are those of docs/usage-record.schema.json."""
    outcome, secrets = ended.outcome, settings.secrets
    body = {
        "request_id": ended.request_id,
        "usage": {
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "total_tokens": outcome.prompt_tokens + outcome.completion_tokens,
        },
        "model": settings.model_name,
        "ai_model_name": settings.aimodel_name,
        "ai_model_namespace": settings.aimodel_namespace,
        "schema_version": SCHEMA_VERSION,
        "record_id": record_id(ended.known_as),
        "outcome": outcome.end,
        "attempt": ended.attempt,
        "error": _names(ended.error, secrets),
        "dead_lettered": ended.dead_lettered,
        "stream": ended.stream,
        "tokens_source": outcome.tokens_source,
        "upstream_model": _clean(outcome.upstream_model, secrets),
        "node": {"id": node, "type": settings.node_type, "version": NODE_VERSION},
        "client": client(ended.metadata, secrets),
        "traceparent": ended.traceparent or None,
        "timestamps_ms": ended.timestamps_ms,
        "durations_ms": ended.durations_ms,
    }
    return msgspec.json.encode(body)


def record_id(known_as: str) -> str:
    """Stable over nodes and attempts: all records of one request carry the same, so that a consumer can count once."""
    return hashlib.sha256(f"workernode usage {known_as}".encode()).hexdigest()[:32]


def client(metadata: dict[str, Any] | None, secrets: tuple[str, ...] = ()) -> dict[str, str]:
    """What the requester's headers say of it, as far as that is no secret."""
    headers = (metadata or {}).get("headers")
    if not isinstance(headers, dict):
        return {}
    found = {}
    for name, values in headers.items():
        if isinstance(name, str) and name.lower() in _CLIENT_HEADERS:
            first = values[0] if isinstance(values, list) and values else values
            if isinstance(first, str):
                found[name.lower()] = _known_text(first, secrets) if len(first) <= LONGEST_TEXT else _clean(first, secrets)
    return found


def _names(error: dict[str, Any] | None, secrets: tuple[str, ...]) -> dict[str, Any] | None:
    """What can be counted of an error; its message may hold anything."""
    return {name: _clean(error.get(name), secrets) for name in ("type", "code")} if error else None


@lru_cache(maxsize=256)  # a client sends the same with each request, and looking for keys takes its time
def _known_text(value: str, secrets: tuple[str, ...]) -> str:
    return str(_clean(value, secrets))


def _clean(value: Any, secrets: tuple[str, ...]) -> Any:
    """Redacted first: half a key at the cut would be none to look at."""
    return redact(value, secrets)[:LONGEST_TEXT] if isinstance(value, str) else value


def _between(start: float | None, end: float | None) -> float | None:
    """Never below 0: the publisher's clock may be ahead of ours."""
    return None if start is None or end is None else max(0.0, round(end - start, 3))


if __name__ == "__main__":
    from reporting.reader import main  # it needs Pulsar's client, which those who only build records do not

    main()
