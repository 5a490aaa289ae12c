"""What each failure means: one table, one error object, named exit codes.

`verdict()` turns what an upstream did into what the node does about it. It is a function of plain data, it never
raises, and it is the only place where statuses, types and codes of OpenAI's kind are interpreted.
"""

from __future__ import annotations

import email.utils
import enum
import re
import signal
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from redaction import public
from redaction import redact as redact  # what others log and report is cleaned with it too

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


_LIKELY_CAUSES: dict[int, str] = {
    signal.SIGKILL: "most likely the kernel, for want of memory (see dmesg), or somebody by hand",
    signal.SIGILL: "native code built for another processor than this one",
    signal.SIGSEGV: "a fault in native code, or a damaged model file",
    signal.SIGABRT: "native code gave up: a fault of its own, a damaged model file, or too little memory",
    signal.SIGBUS: "a mapped file was cut short while in use, or a disk failed or is full",
    signal.SIGTERM: "somebody asked it to end",
}


def killed_by(signal_number: int) -> str:
    """`signal SIGKILL (most likely …)`: what ended a process, for people."""
    known = signal_number in set(signal.Signals)
    name, cause = signal.Signals(signal_number).name if known else signal_number, _LIKELY_CAUSES.get(signal_number)
    return f"signal {name}" + (f" ({cause})" if cause else "")


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
    "endless",  # an answer that went on past its time
]


Phase = Literal[
    "waiting",  # the requester has seen nothing yet
    "begun",  # a part of the answer is with the requester
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
    """`error`: for the requester; `reason`: of the Kubernetes Event, where one is due; `wait_s`: as upstream asked;
    `confirm`: one answer is too little to believe this of the whole node; it is to be asked for again first."""

    scope: Scope
    error: ErrorObject
    reason: str | None = None
    wait_s: float | None = None
    confirm: bool = False


def error_object(message: str, type_: str, code: str | int | None = None, param: str | None = None) -> ErrorObject:
    """OpenAI's error, without the `{"error": …}` around it."""
    return {"message": message, "type": type_, "param": param, "code": code}


_QUOTA = re.compile(
    r"insufficient_quota|credit_balance_exhausted|spend_limit_exceeded|organization_usage_limit_exceeded"
    r"|billing_not_active|billing_hard_limit_reached|insufficient.balance|\bcredit_limit\b"
)
_TOO_DEAR = re.compile(r"max_tokens|can only afford", re.IGNORECASE)  # a smaller request might be served
_TOO_LARGE = re.compile(r"request too large|\blimit \d[\d,]*, requested \d", re.IGNORECASE)
_THROTTLE = {"rate_limit_exceeded", "slow_down", "tokens", "requests", "rate_limit_error", "rate_limit", "ratelimitreached"}
_CONTEXT = {"context_length_exceeded", "exceed_context_size_error"}
_KEY_REFUSED = {
    "invalid_api_key", "ip_not_authorized", "account_deactivated", "unsupported_country_region_territory",
    "organization_restricted", "authenticationtypedisabled", "permissiondenied",
}  # fmt: skip
_NAMES_OF_401 = {"authentication_error", "invalid_request_error", "invalid_authentication", "invalid_authentication_error"}
_NAMES_OF_A_REQUESTS_403 = {"invalid_request_error", "content_policy_violation", "content_filter", "responsibleaipolicyviolation"}
_NOT_SERVED = {
    "model_not_found", "model_not_available", "model_decommissioned", "deploymentnotfound", "unknown_url",
    "model_permission_blocked_project", "model_permission_blocked_org",
}  # fmt: skip
# Words count from their beginning only: further on, vendors quote what the requester sent.
_NO_MONEY_WORDS = re.compile(r"out of call volume quota", re.IGNORECASE)
_KEY_REFUSED_WORDS = re.compile(r"unauthorized: invalid api key|access denied due to (?:invalid subscription key|virtual network)", re.I)
_NOT_SERVED_WORDS = re.compile(
    r"the model `[^`]*` does not exist|model not exist$|model [\"'][^\"']*[\"'] not found"
    r"|the api deployment for this resource does not exist|invalid url \(",
    re.IGNORECASE,
)
_RETRY_STATUS = {408, 409}  # and all from 500 on but 501
_CAPACITY_STATUS = 498  # Groq's: the flex tier is full
_RETRY_NAMES = {
    "server_error", "server_is_overloaded", "overloaded_error", "internal_server_error", "internalservererror",
    "service_unavailable", "service_unavailable_error", "unavailable_error", "api_error", "timeout",
}  # fmt: skip
_WORDS: dict[str, str] = {
    "refused": "The upstream refused the connection.",
    "unresolved": "The upstream's name does not resolve.",
    "tls": "The upstream's TLS certificate could not be verified.",
    "reset": "The upstream broke the connection.",
    "timeout": "The upstream did not answer in time.",
    "cut": "The upstream cut its answer short.",
    "garbled": "The upstream's answer is not what OpenAI's API sends.",
    "endless": "The model did not come to an end in time; set max_tokens for a shorter answer.",
}
_LONGEST_MESSAGE = 4000
_LONGEST_NAME = 200


def verdict(failure: Failure, secrets: tuple[str, ...] = (), now_s: float | None = None, phase: Phase = "waiting") -> Verdict:
    """What to do about a failure of the upstream. `secrets`: strings to take out of its words; `now_s`: UTC seconds,
    the clock's where it is not given."""
    judged = _unanswered(failure) if failure.kind in _WORDS else _answered(failure, secrets, now_s)
    return Verdict(Scope.REQUEST, judged.error) if phase == "begun" else judged


def _unanswered(failure: Failure) -> Verdict:
    type_ = "timeout" if failure.kind in ("timeout", "endless") else "server_error"
    error = error_object(_WORDS[failure.kind], type_, f"upstream_{failure.kind}")
    if failure.kind == "endless":  # it would be so again
        return Verdict(Scope.REQUEST, {**error, "message": f"{error['message']} ({failure.detail})"})
    # Unresolved names and broken TLS pass by themselves once the node has served: no reason for an Event. What they mean
    # to a node that never reached its upstream is supervision/trouble.py's to say.
    return Verdict(Scope.THROTTLE if failure.kind in ("unresolved", "tls") else Scope.RETRY, error)


def _answered(failure: Failure, secrets: tuple[str, ...], now_s: float | None) -> Verdict:
    fields, message = _look_into(failure.body)
    status = _status(failure, fields)
    scope, reason, confirm = _judge(status, _names(fields), message or _line(failure.body))
    scope = _overridden(scope, failure.headers.get("x-should-retry", ""))
    waits = scope in (Scope.THROTTLE, Scope.RETRY)
    wait_s = _asked_wait_s(failure.headers, time.time() if now_s is None else now_s) if waits else None
    error = _error_for_requester(failure, fields, message, secrets)
    if reason == "APIQuotaExceededError" and http_status(error) != 429:
        error["code"] = "insufficient_quota"  # in the vendor's words it would read as the requester's mistake, or pass for a fault
    return Verdict(scope, error, reason, wait_s, confirm)


def _judge(status: int | None, names: set[str], words: str) -> tuple[Scope, str | None, bool]:
    """The table, by what the upstream said itself: scope, reason, whether to confirm it. `status` None: an error inside a
    stream, its names alone decide."""
    if _is_out_of_money(status, names, words):
        return Scope.NODE, "APIQuotaExceededError", bool(_TOO_DEAR.search(words))
    if names & _CONTEXT:
        return Scope.REQUEST, None, False
    if status in (429, _CAPACITY_STATUS) or names & _THROTTLE:
        # "Limit 30000, Requested 45000": no wait will make it fit.
        return (Scope.REQUEST if _TOO_LARGE.search(words) else Scope.THROTTLE), None, False
    if names & _KEY_REFUSED or (status == 401 and names & _NAMES_OF_401):
        return Scope.NODE, "AuthenticationError", False
    if _is_not_served(status, names, words):
        return Scope.NODE, "ConfigurationError", False
    if status in (401, 403) and not names & _NAMES_OF_A_REQUESTS_403:
        return Scope.NODE, "AuthenticationError", not _KEY_REFUSED_WORDS.match(words)
    return _by_status(status, names), None, False


def _is_out_of_money(status: int | None, names: set[str], words: str) -> bool:
    said = (status == 429 and _QUOTA.search(words.lower())) or (status == 403 and _NO_MONEY_WORDS.match(words))
    return status == 402 or bool(said) or any(_QUOTA.search(name) for name in names)


def _is_not_served(status: int | None, names: set[str], words: str) -> bool:
    """The model's name and the path come from the node's own configuration."""
    said = status in (400, 404) and _NOT_SERVED_WORDS.match(words)
    return bool(said) or (status in (400, 403, 404, None) and bool(names & _NOT_SERVED))


def _by_status(status: int | None, names: set[str]) -> Scope:
    if status is None:
        return Scope.RETRY if names & _RETRY_NAMES or not names else Scope.REQUEST
    if status in _RETRY_STATUS or (status >= 500 and status != 501):  # 501: llama.cpp was not built or started for it
        return Scope.RETRY
    return Scope.REQUEST


def _names(fields: dict[str, Any]) -> set[str]:
    return {str(fields[name]).lower() for name in ("type", "code") if isinstance(fields.get(name), str)}


def _status(failure: Failure, fields: dict[str, Any]) -> int | None:
    """The answer's; inside a stream the one that llama.cpp, vLLM and others give as the code."""
    return failure.status if failure.status is not None else _as_status(fields.get("code"))


def _as_status(code: object) -> int | None:
    if isinstance(code, str) and re.fullmatch(r"[45][0-9][0-9]", code):
        return int(code)
    return code if isinstance(code, int) and 400 <= code <= 599 else None


def _overridden(scope: Scope, should_retry: str) -> Scope:
    """x-should-retry is the upstream's own word on it."""
    if should_retry.lower() == "true" and scope is Scope.REQUEST:
        return Scope.RETRY
    return Scope.REQUEST if should_retry.lower() == "false" and scope is Scope.RETRY else scope


def _look_into(body: bytes) -> tuple[dict[str, Any], str]:
    """The fields and the message of whatever came: OpenAI's object, a bare string, `{"message"}`, `{"detail"}`,
    Google's list of one. The message is empty where there is none."""
    try:
        found = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return {}, ""
    if isinstance(found, list) and found:
        found = found[0]
    if isinstance(found, dict) and isinstance(inner := found.get("error"), dict | str) and inner:
        found = inner
    if isinstance(found, str):
        return {}, found
    fields = found if isinstance(found, dict) else {}
    said = fields.get("message") or fields.get("detail") or ""
    return fields, said if isinstance(said, str) else msgspec.json.encode(said).decode()


def _line(body: bytes) -> str:
    """A short line, as proxies send it; of a page there is nothing to show."""
    text = body[:1000].decode("utf-8", "replace").strip()
    return text if text.isprintable() and not text.startswith("<") and len(text) <= 300 else ""


def _error_for_requester(failure: Failure, fields: dict[str, Any], message: str, secrets: tuple[str, ...]) -> ErrorObject:
    def name(key: str) -> str | None:
        value = fields.get(key)
        return public(value, secrets, _LONGEST_NAME) if isinstance(value, str) and value else None

    line = _line(failure.body)
    message = message or f"The upstream answered {failure.detail}" + (f": {line}" if line else ".")
    code, given = fields.get("code"), _as_status(fields.get("code"))
    error = error_object(
        public(message, secrets, _LONGEST_MESSAGE),
        name("type") or _type_of(failure.status or given),
        name("code") or (code if isinstance(code, int) and not isinstance(code, bool) and abs(code) < 2**31 else None),
        name("param"),
    )
    if error["code"] is None and failure.status is not None and _known_status(error) is None:
        error["code"] = str(failure.status)  # the requester's service could not know it from a vendor's own type
    return error


def _type_of(status: int | None) -> str:
    by_status = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    if status is None or status >= 500:
        return "server_error"
    return by_status.get(status, "invalid_request_error")


def _asked_wait_s(headers: dict[str, str], now_s: float) -> float | None:
    """How long the upstream asked to wait, where it did and the figure can be believed: above 0, up to 120 s."""
    after = headers.get("retry-after", "")
    candidates = (
        _number(headers.get("retry-after-ms", ""), 0.001),
        _number(after, 1.0),
        _until(after, headers.get("date", ""), now_s),
        _bucket_wait_s(headers),
    )
    return next((wait_s for wait_s in candidates if wait_s is not None and 0 < wait_s <= 120), None)


def _number(value: str, unit: float) -> float | None:
    return float(value) * unit if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{0,9})?", value) else None


def _until(date: str, upstreams_now: str, now_s: float) -> float | None:
    """Seconds to an HTTP date, by the upstream's own clock where it tells it."""
    until_s = _http_date_s(date)
    if until_s is None:
        return None
    asked_s = _http_date_s(upstreams_now)
    return until_s - (now_s if asked_s is None else asked_s)


def _http_date_s(value: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def _bucket_wait_s(headers: dict[str, str]) -> float | None:
    """Of the buckets that are empty. A reset says when a bucket is full again: a tenth of it brings a tenth back."""
    waits = []
    for what in ("requests", "tokens"):
        reset_s = go_duration_s(headers.get(f"x-ratelimit-reset-{what}", ""))
        if reset_s and headers.get(f"x-ratelimit-remaining-{what}") == "0":
            waits.append(reset_s / 10)
    return max(waits, default=None)


def go_duration_s(value: str) -> float | None:
    """`1s`, `6m0s`, `12ms`, and Azure's bare seconds."""
    if not re.fullmatch(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:ms|h|m|s))+|[0-9]{1,9}", value):
        return None
    units = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    return sum(float(n) * units[unit] for n, unit in re.findall(r"([0-9.]+)(ms|h|m|s|)", value))


_STATUS_BY_CODE = {
    "invalid_api_key": 401,
    "ip_not_authorized": 401,
    "unsupported_country_region_territory": 403,
    "content_policy_violation": 400,
    **dict.fromkeys(_NOT_SERVED, 404),
    "rate_limit_exceeded": 429,
    "request_too_large": 413,
    "slow_down": 503,
    "server_is_overloaded": 503,
    "timeout": 504,
    "upstream_refused": 502,
    "upstream_unresolved": 502,
    "upstream_tls": 502,
    "upstream_reset": 502,
    "upstream_timeout": 504,
    "upstream_endless": 504,
    "upstream_cut": 502,
    "upstream_garbled": 502,
}
_STATUS_BY_TYPE = {
    "invalid_request_error": 400,
    "exceed_context_size_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "request_forbidden": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "rate_limit_error": 429,
    "requests": 429,
    "tokens": 429,
    "server_error": 500,
    "api_error": 500,
    "not_supported_error": 501,
    "service_unavailable": 503,
    "service_unavailable_error": 503,
    "unavailable_error": 503,
    "overloaded_error": 503,
    "server_is_overloaded": 503,
    "timeout": 504,
}

_OURS = {
    "request_expired", "invalid_message", "requester_gone", "requester_unknown", "undeliverable",
    "node_child_died", "node_stopped", "node_error", "insufficient_quota",
}
KNOWN_CODES = frozenset(_OURS | _CONTEXT | _STATUS_BY_CODE.keys() | _STATUS_BY_TYPE.keys())  # all that may name a metric's label


def http_status(error: ErrorObject) -> int:
    """The status that OpenAI would have sent with this error object; 500 where nothing is known of it."""
    return _known_status(error) or 500


def _known_status(error: ErrorObject) -> int | None:
    code, type_ = error.get("code"), error.get("type")
    if (as_code := _as_status(code)) is not None:  # llama.cpp sends the status as the code
        return as_code
    names = [name.lower() for name in (code, type_) if isinstance(name, str)]
    if any(_QUOTA.search(name) for name in names):
        return 429
    by_name = [table[name] for table in (_STATUS_BY_CODE, _STATUS_BY_TYPE) for name in names if name in table]
    return by_name[0] if by_name else None
