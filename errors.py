"""What each failure means: one table, one error object, named exit codes.

`verdict()` turns what an upstream did into what the node does about it. It is a pure function of plain data,
it never raises, and it is the only place where statuses, types and codes of OpenAI's kind are interpreted.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

ErrorObject = dict[str, Any]  # {"message", "type", "param", "code"}


class ExitCode(enum.IntEnum):
    """How a process of the node ended. 78 is sysexits.h's EX_CONFIG: a restart would not help."""

    OK = 0
    CRASHED = 1
    CONFIGURATION = 78
    # of a child:
    SUPERVISOR_GONE = 70
    BACKEND_UNUSABLE = 71
    MODEL_SERVER_DIED = 72


class Scope(enum.Enum):
    """Whom a failure concerns."""

    REQUEST = "request"  # answer it with the error, ack
    RETRY = "retry"  # back to the queue, an attempt counted
    THROTTLE = "throttle"  # back to the queue uncounted; the node takes less
    NODE = "node"  # the node can serve nobody: give back, stop receiving, report


Kind = Literal[
    "http",  # an error status
    "stream_error",  # an error object inside a stream of status 200
    "refused",  # no connection
    "unresolved",  # the name does not resolve
    "tls",
    "reset",  # the connection broke
    "timeout",
    "cut",  # a stream ended with neither finish_reason nor [DONE]
    "garbled",  # an answer that is not OpenAI's JSON
]


@dataclass(frozen=True)
class Failure:
    """What an upstream did wrong. `body`: of an error status or the error event; `headers`: names in lower case."""

    kind: Kind
    detail: str
    status: int | None = None
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """`error`: for the requester; `reason`: of the Kubernetes Event, where one is due; `wait_s`: as upstream asked."""

    scope: Scope
    error: ErrorObject
    reason: str | None = None
    wait_s: float | None = None


def error_object(message: str, type_: str, code: str | int | None = None, param: str | None = None) -> ErrorObject:
    """OpenAI's error, without the `{"error": …}` around it."""
    return {"message": message, "type": type_, "param": param, "code": code}


_QUOTA = re.compile(r"insufficient_quota|credit_balance_exhausted|spend_limit_exceeded|organization_usage_limit_exceeded|insufficient.balance")
_TOO_LARGE = re.compile(r"request too large|\blimit \d[\d,]*, requested \d", re.IGNORECASE)
_THROTTLE = {"rate_limit_exceeded", "slow_down", "tokens", "requests", "rate_limit_error"}
_CONTEXT = {"context_length_exceeded", "exceed_context_size_error"}
_RETRY_STATUS = {408, 409, 500, 502, 503, 504, 520, 522, 524, 529}
_RETRY_NAMES = {"server_error", "server_is_overloaded", "overloaded_error", "internal_server_error", "service_unavailable", "api_error"}
_WORDS: dict[str, str] = {
    "refused": "The upstream refused the connection.",
    "unresolved": "The upstream's name does not resolve.",
    "tls": "The upstream's TLS certificate could not be verified.",
    "reset": "The upstream broke the connection.",
    "timeout": "The upstream did not answer in time.",
    "cut": "The upstream cut its answer short.",
    "garbled": "The upstream's answer is not what OpenAI's API sends.",
}


def verdict(failure: Failure, secrets: tuple[str, ...] = ()) -> Verdict:
    """What to do about a failure of the upstream. `secrets`: strings to take out of its words."""
    if failure.kind in _WORDS:
        type_ = "timeout" if failure.kind == "timeout" else "server_error"
        error = error_object(_WORDS[failure.kind], type_, f"upstream_{failure.kind}")
        scope = Scope.THROTTLE if failure.kind in ("unresolved", "tls") else Scope.RETRY
        return Verdict(scope, error, "ConfigurationError" if scope is Scope.THROTTLE else None)
    error = _read_error(failure, secrets)
    scope, reason = _judge(failure.status, error, failure.body)
    wait_s = _asked_wait_s(failure.headers) if scope is Scope.THROTTLE else None
    if failure.headers.get("x-should-retry") == "true" and scope is Scope.REQUEST:
        scope = Scope.RETRY
    if failure.headers.get("x-should-retry") == "false" and scope is Scope.RETRY:
        scope = Scope.REQUEST
    return Verdict(scope, error, reason, wait_s)


def _judge(status: int | None, error: ErrorObject, body: bytes) -> tuple[Scope, str | None]:
    """The table. `status` is None for an error object inside a stream: its names alone decide."""
    names = {str(error.get("type") or "").lower(), str(error.get("code") or "").lower()}
    message = str(error.get("message") or "")
    if any(_QUOTA.search(name) for name in names) or status == 402 or (status == 429 and _QUOTA.search(message.lower())):
        return Scope.NODE, "APIQuotaExceededError"
    if names & _CONTEXT:
        return Scope.REQUEST, None
    if (status == 429 or names & _THROTTLE) and _TOO_LARGE.search(message):
        return Scope.REQUEST, None  # no wait will make it fit
    if status == 429 or names & _THROTTLE:
        return Scope.THROTTLE, None
    if "invalid_api_key" in names or (status == 401 and names & {"authentication_error", "invalid_request_error", "invalid_authentication"}):
        return Scope.NODE, "AuthenticationError"
    if "unsupported_country_region_territory" in names:
        return Scope.NODE, "AuthenticationError"
    if "model_not_found" in names and status in (404, None):
        return Scope.NODE, "ConfigurationError"  # the model's name comes from the node's own configuration
    if status in _RETRY_STATUS or (status is not None and status > 500) or names & _RETRY_NAMES:
        return Scope.RETRY, None
    if status is None and isinstance(error.get("code"), int) and int(error["code"]) >= 500:
        return Scope.RETRY, None
    return Scope.REQUEST, None


def _read_error(failure: Failure, secrets: tuple[str, ...]) -> ErrorObject:
    """OpenAI's object out of whatever came: its own, a bare string, `{"message"}`, `{"detail"}`, or no JSON at all."""
    try:
        body = msgspec.json.decode(failure.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = None
    found = body.get("error", body) if isinstance(body, dict) else body
    fields = found if isinstance(found, dict) else {}
    message = found if isinstance(found, str) else fields.get("message") or fields.get("detail")
    if not isinstance(message, str) or not message:
        message = f"The upstream answered {failure.detail}."
    type_, code, param = fields.get("type"), fields.get("code"), fields.get("param")
    return error_object(
        redact(message, secrets)[:4000],
        type_ if isinstance(type_, str) and type_ else _type_of(failure.status),
        code if isinstance(code, str | int) else None,
        param if isinstance(param, str) else None,
    )


def _type_of(status: int | None) -> str:
    by_status = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    if status is None or status >= 500:
        return "server_error"
    return by_status.get(status, "invalid_request_error")


_KEY_LIKE = re.compile(r"\b(?:sk|pk|gsk|xai|key|Bearer)[-_ ][A-Za-z0-9_*.\-]{6,}")


def redact(text: str, secrets: tuple[str, ...] = ()) -> str:
    """`text` without the given secrets and without anything shaped like a key (upstreams echo parts of it)."""
    for secret in secrets:
        text = text.replace(secret, "[redacted]")
    return _KEY_LIKE.sub("[redacted]", text)


def _asked_wait_s(headers: dict[str, str]) -> float | None:
    """How long the upstream asked to wait, where it did and the figure can be believed: above 0, up to 120 s."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            wait_s = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if 0 < wait_s <= 120:
            return wait_s
    return None


_STATUS_BY_CODE = {
    "invalid_api_key": 401,
    "model_not_found": 404,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "request_too_large": 413,
    "timeout": 504,
    "upstream_timeout": 504,
}
_STATUS_BY_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "requests": 429,
    "tokens": 429,
    "insufficient_quota": 429,
    "server_error": 500,
    "service_unavailable": 503,
    "timeout": 504,
}


def http_status(error: ErrorObject) -> int:
    """The status that OpenAI would have sent with this error object; 500 where nothing is known of it."""
    code, type_ = error.get("code"), error.get("type")
    if isinstance(code, int) and 400 <= code <= 599:  # llama.cpp sends the status as the code
        return code
    if isinstance(code, str):
        if code in _STATUS_BY_CODE:
            return _STATUS_BY_CODE[code]
        if code.isdigit() and 400 <= int(code) <= 599:
            return int(code)
    return _STATUS_BY_TYPE.get(type_, 500) if isinstance(type_, str) else 500
