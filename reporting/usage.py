"""Usage records: one for each request that ended, for billing. Pure: from what is known to the bytes to publish."""

from __future__ import annotations

import hashlib
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from errors import redact
from ipc.messages import Outcome

if TYPE_CHECKING:
    from config import Settings

SCHEMA_VERSION = 1
NODE_VERSION = "0.1.0"
_CLIENT_HEADERS = ("user-agent", "x-forwarded-for", "x-real-ip", "x-request-id")  # never Authorization or cookies


@dataclass(frozen=True)
class Ended:
    """A request that ended. Times are UTC milliseconds. `known_as`: its id, or that of a dead letter's retry."""

    request_id: str
    known_as: str
    stream: bool
    metadata: dict[str, Any] | None
    attempt: int
    published_ms: float
    received_ms: float
    dispatched_ms: float | None
    outcome: Outcome


def node_id() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def record(ended: Ended, settings: Settings, node: str) -> bytes:
    """The record as JSON; fields as docs/wire.md lists them."""
    outcome = ended.outcome
    error = outcome.error or {}
    timestamps = _timestamps(ended)
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
        "error": {"type": error.get("type"), "code": error.get("code")} if error else None,
        "stream": ended.stream,
        "tokens_source": outcome.tokens_source,
        "upstream_model": outcome.upstream_model,
        "node": {"id": node, "type": settings.node_type, "version": NODE_VERSION},
        "client": client(ended.metadata),
        "timestamps_ms": timestamps,
        "durations_ms": _durations(timestamps),
    }
    return msgspec.json.encode(body)


def record_id(known_as: str) -> str:
    """Stable over nodes and attempts: all records of one request carry the same, so that a consumer can count once."""
    return hashlib.sha256(f"workernode usage {known_as}".encode()).hexdigest()[:32]


def client(metadata: dict[str, Any] | None) -> dict[str, str]:
    """What the requester's headers say of it, as far as that is no secret."""
    headers = (metadata or {}).get("headers")
    if not isinstance(headers, dict):
        return {}
    found = {}
    for name, values in headers.items():
        if isinstance(name, str) and name.lower() in _CLIENT_HEADERS:
            first = values[0] if isinstance(values, list) and values else values
            if isinstance(first, str):
                found[name.lower()] = redact(first[:200])
    return found


def _timestamps(ended: Ended) -> dict[str, float | None]:
    outcome = ended.outcome
    return {
        "published": ended.published_ms,
        "received": ended.received_ms,
        "dispatched": ended.dispatched_ms,
        "upstream_sent": outcome.upstream_sent_ms,
        "first_token": outcome.first_token_ms,
        "last_token": outcome.last_token_ms,
        "answered": outcome.answered_ms,
    }


def _durations(at: dict[str, float | None]) -> dict[str, float | None]:
    stages = {
        "queued": ("published", "received"),
        "waited": ("received", "dispatched"),
        "to_first_token": ("upstream_sent", "first_token"),
        "generated": ("first_token", "last_token"),
        "delivered": ("last_token", "answered"),
        "total": ("received", "answered"),
    }
    return {name: _between(at[start], at[end]) for name, (start, end) in stages.items()}


def _between(start: float | None, end: float | None) -> float | None:
    """Never below 0: the publisher's clock may be ahead of ours."""
    return None if start is None or end is None else max(0.0, round(end - start, 3))
