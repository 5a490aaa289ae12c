"""Usage records: one for each request that ended, for billing. Pure: from what is known to the bytes to publish.

`python -m reporting.usage` reads them again and prints their sums (reporting/reader.py).
"""

from __future__ import annotations

import hashlib
import os
import socket
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from errors import redact
from ipc.messages import Outcome

if TYPE_CHECKING:
    from config import Settings

SCHEMA_VERSION = 1
NODE_VERSION = "0.1.0"
LONGEST_TEXT = 200  # of what others have said
_CLIENT_HEADERS = ("user-agent", "x-forwarded-for", "x-real-ip", "x-request-id")  # never Authorization or cookies


class Times(msgspec.Struct, frozen=True):
    """UTC milliseconds; None for what did not happen."""

    published: float
    received: float
    dispatched: float | None
    upstream_sent: float | None
    first_token: float | None
    last_token: float | None
    answered: float | None


class Durations(msgspec.Struct, frozen=True):
    """Milliseconds between two of them; None where one of the two did not happen."""

    queued: float | None
    waited: float | None
    prepared: float | None
    to_first_token: float | None
    generated: float | None
    delivered: float | None
    total: float | None


class Ended(msgspec.Struct, dict=True):  # a dict: for what is derived
    """A request that ended. Times are UTC milliseconds. `known_as`: its id, or that of a dead letter's retry; `error`: why
    it has no result, where it has none; `trail`: what its attempts ended with; `times`, `took`: all of it in
    order, as its record has it."""

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

    def __post_init__(self) -> None:
        outcome = self.outcome
        at = self.times = Times(
            self.published_ms, self.received_ms, self.dispatched_ms,
            outcome.upstream_sent_ms, outcome.first_token_ms, outcome.last_token_ms, outcome.answered_ms,
        )  # fmt: skip
        self.took = Durations(
            queued=_between(at.published, at.received),
            waited=_between(at.received, at.dispatched),
            prepared=_between(at.dispatched, at.upstream_sent),
            to_first_token=_between(at.upstream_sent, at.first_token),
            generated=_between(at.first_token, at.last_token),
            delivered=_between(at.last_token, at.answered),
            total=_between(at.received, at.answered),
        )


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _Node(msgspec.Struct, frozen=True):
    id: str
    type: str
    version: str = NODE_VERSION


class _Record(msgspec.Struct, frozen=True):
    """As docs/usage-record.schema.json has it."""

    request_id: str
    usage: _Usage
    model: str
    ai_model_name: str
    ai_model_namespace: str
    record_id: str
    outcome: str
    attempt: int
    error: dict[str, Any] | None
    dead_lettered: bool
    stream: bool
    tokens_source: str
    upstream_model: str | None
    node: _Node
    client: dict[str, str]
    traceparent: str | None
    timestamps_ms: Times
    durations_ms: Durations
    schema_version: int = SCHEMA_VERSION


_encoder = msgspec.json.Encoder()


def node_id() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def record(ended: Ended, settings: Settings, node: str) -> bytes:
    """The record as JSON."""
    outcome, secrets = ended.outcome, settings.secrets
    prompt_tokens, completion_tokens = outcome.prompt_tokens, outcome.completion_tokens
    return _encoder.encode(
        _Record(
            request_id=ended.request_id,
            usage=_Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens),
            model=settings.model_name,
            ai_model_name=settings.aimodel_name,
            ai_model_namespace=settings.aimodel_namespace,
            record_id=record_id(ended.known_as),
            outcome=outcome.end,
            attempt=ended.attempt,
            error=_names(ended.error, secrets),
            dead_lettered=ended.dead_lettered,
            stream=ended.stream,
            tokens_source=outcome.tokens_source,
            upstream_model=None if outcome.upstream_model is None else _short(outcome.upstream_model, secrets),
            node=_Node(node, settings.node_type),
            client=client(ended.metadata, secrets),
            traceparent=ended.traceparent or None,
            timestamps_ms=ended.times,
            durations_ms=ended.took,
        )
    )


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
                found[name.lower()] = _short(first, secrets)
    return found


def _names(error: dict[str, Any] | None, secrets: tuple[str, ...]) -> dict[str, Any] | None:
    """What can be counted of an error; its message may hold anything."""
    return {name: _clean(error.get(name), secrets) for name in ("type", "code")} if error else None


def _short(text: str, secrets: tuple[str, ...]) -> str:
    return _known_text(text, secrets) if len(text) <= LONGEST_TEXT else str(_clean(text, secrets))


@lru_cache(maxsize=256)  # a client, or an upstream, sends the same each time, and looking for keys takes its time
def _known_text(text: str, secrets: tuple[str, ...]) -> str:
    return str(_clean(text, secrets))


def _clean(value: Any, secrets: tuple[str, ...]) -> Any:
    """Redacted first: half a key at the cut would be none to look at."""
    return redact(value, secrets)[:LONGEST_TEXT] if isinstance(value, str) else value


def _between(start: float | None, end: float | None) -> float | None:
    """Never below 0: the publisher's clock may be ahead of ours. By whole microseconds, as round(…, 3) takes three times as long."""
    if start is None or end is None:
        return None
    return round((end - start) * 1000) / 1000 if end > start else 0.0


if __name__ == "__main__":
    from reporting.reader import main  # it needs Pulsar's client, which those who only build records do not

    main()
