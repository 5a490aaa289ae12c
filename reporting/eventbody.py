"""What a Kubernetes Event of ours says and what it is called. Pure; the API server's rules: docs/events.md."""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from errors import redact

Reason = Literal[
    "ConfigurationError", "AuthenticationError", "MessageQueueConnectionError", "APIQuotaExceededError", "GeneralError"
]
EventType = Literal["Warning", "Normal"]

COMPONENT = "workernode"
LAST_REPORT = "workernode/last-report"  # an annotation: which report was counted last
WINDOW_S = 600.0  # after so long a cause is added anew: its reader acts on what is added, and never sees a PATCH
LONGEST_MESSAGE_BYTES = 1024  # the API server's own bound
_LONGEST_INSTANCE = 128  # likewise
_LONGEST_PREFIX = 200  # of 253 for a name
# What differs between two reports of one cause: figures with their units, ids of requests and connections.
_PASSING = re.compile(r"(?<!\S)\W*\d[\d.,:]*(?:[mµn]?s|m|h|%|[kKMG]?i?B)?\W*(?!\S)|\b[0-9a-fA-F][0-9a-fA-F-]{15,}\b|\breq_\w+")


@dataclass(frozen=True)
class Subject:
    """The AIModel that Events are about, and the node that reports: its host's or pod's name, so that it outlives a restart."""

    aimodel: str
    namespace: str
    node: str


@dataclass(frozen=True)
class Cause:
    """Reports of one cause are one Event. `gist`: the message without figures and ids."""

    type: EventType
    reason: Reason
    gist: str


@dataclass(frozen=True)
class Report:
    """One cause, seen `count` times between `first_s` and `last_s` (UTC seconds). `mark` tells it from every other
    report: by it the node sees in the stored Event whether a request whose reply was lost has been carried out."""

    cause: Cause
    message: str
    first_s: float
    last_s: float
    count: int = 1
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def again(self, now_s: float) -> Report:
        return replace(self, count=self.count + 1, last_s=max(self.last_s, now_s))


def cause(type_: EventType, reason: Reason, message: str) -> Cause:
    return Cause(type_, reason, " ".join(_PASSING.sub(" # ", message).split()))


def tidy(message: str, secrets: tuple[str, ...]) -> str:
    """In one line, without secrets and without what cannot be sent or shown."""
    sendable = message.encode("utf-8", "replace").decode()  # half a surrogate pair is no UTF-8
    shown = "".join(c if c.isprintable() else " " for c in sendable)
    return redact(" ".join(shown.split()), secrets)


def event_name(subject: Subject, of: Cause, window: int) -> str:
    """The same for the same cause at the same node in the same window, whichever process of the node asks."""
    told = "\n".join((subject.namespace, subject.aimodel, subject.node, of.type, of.reason, of.gist, str(window)))
    prefix = re.sub(r"[^a-z0-9]+", "-", subject.aimodel.lower())[:_LONGEST_PREFIX].strip("-") or "aimodel"
    return f"{prefix}.{hashlib.sha256(told.encode()).hexdigest()[:20]}"


def window(now_s: float) -> int:
    return int(now_s // WINDOW_S)


def new_event(subject: Subject, report: Report, name: str) -> dict[str, Any]:
    """The body of a POST."""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": subject.namespace, "annotations": {LAST_REPORT: report.mark}},
        "involvedObject": {
            "apiVersion": "model.youxam.com/v1alpha1",
            "kind": "AIModel",
            "name": subject.aimodel,
            "namespace": subject.namespace,
        },
        "type": report.cause.type,
        "reason": report.cause.reason,
        "message": _with_node(report.message, subject.node),
        "firstTimestamp": timestamp(report.first_s),
        "lastTimestamp": timestamp(report.last_s),
        "count": report.count,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": subject.node[:_LONGEST_INSTANCE],
    }


def repetition(report: Report, count_before: int, resource_version: str) -> dict[str, Any]:
    """The body of a PATCH. With the version it is based on, another writer's count in between makes it a conflict."""
    return {
        "count": count_before + report.count,
        "lastTimestamp": timestamp(report.last_s),
        "metadata": {"resourceVersion": resource_version, "annotations": {LAST_REPORT: report.mark}},
    }


def timestamp(at_s: float) -> str:
    """RFC 3339 in UTC; an Event's times are whole seconds."""
    return datetime.fromtimestamp(int(at_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _with_node(message: str, node: str) -> str:
    """Which of the model's nodes says so stands at the end, and is not what gets cut off."""
    tail = f" (node {node[:_LONGEST_INSTANCE]})"
    return _cut(message or "no details", LONGEST_MESSAGE_BYTES - len(tail.encode())) + tail


def _cut(text: str, most_bytes: int) -> str:
    data = text.encode()
    if len(data) <= most_bytes:
        return text
    return data[: most_bytes - len("…".encode())].decode(errors="ignore") + "…"
