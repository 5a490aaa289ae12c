"""HTTP errors with the bodies and headers that vendors document; `{key}` and `{model}` are filled in from the request."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.real.upstream.ask import Ask, Reply


@dataclass(frozen=True)
class Failure:
    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


def _openai(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


_LIMITS = {
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-limit-tokens": "150000",
    "x-ratelimit-remaining-requests": "0",
    "x-ratelimit-remaining-tokens": "149984",
    "x-ratelimit-reset-requests": "1s",
    "x-ratelimit-reset-tokens": "6m0s",
}
_RATE = _openai(
    "Rate limit reached for {model} in organization org-test on requests per min (RPM): Limit 60, Used 60, Requested 1. "
    "Please try again in 1s. Visit https://platform.openai.com/account/rate-limits to learn more.",
    "requests", "rate_limit_exceeded",
)  # fmt: skip
_QUOTA = _openai(
    "You exceeded your current quota, please check your plan and billing details.", "insufficient_quota", "insufficient_quota"
)
_SERVER = _openai("The server had an error while processing your request. Sorry about that!", "server_error")
_PAGE = "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body><center><h1>502 Bad Gateway</h1></center></body>\r\n</html>\r\n"

FAILURES: dict[str, Failure] = {
    # the request's own fault
    "err-400": Failure(400, _openai("Invalid value: 'robot'. Supported values are: 'system', 'assistant', 'user', 'tool'.",
                                    "invalid_request_error", "invalid_value", "messages[0].role")),
    "err-400-body": Failure(400, _openai("We could not parse the JSON body of your request.", "invalid_request_error")),
    "err-413": Failure(413, _openai("The request body is too large.", "invalid_request_error")),
    "err-422": Failure(422, {"detail": [{"loc": ["body", "messages"], "msg": "field required", "type": "value_error.missing"}]}),
    "err-context": Failure(400, _openai(
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens. "
        "Please reduce the length of the messages.", "invalid_request_error", "context_length_exceeded", "messages")),
    "err-context-llamacpp": Failure(400, {"error": {
        "code": 400, "message": "the request exceeds the available context size, try increasing it",
        "type": "exceed_context_size_error", "n_prompt_tokens": 9001, "n_ctx": 8192}}),
    "err-context-together": Failure(403, {"id": "test", "error": {
        "message": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097. Given: 5000 `inputs` tokens",
        "type": "invalid_request_error", "param": "max_tokens", "code": None}}),
    "err-content-policy": Failure(403, _openai("Your request was rejected by our content policy.", "invalid_request_error",
                                               "content_policy_violation")),
    "err-too-large": Failure(429, _openai(
        "Request too large for {model} in organization org-test on tokens per min (TPM): Limit 30000, Requested 45000. "
        "The input or output tokens must be reduced in order to run successfully.", "tokens", "rate_limit_exceeded")),
    # the node's: key, model, money
    "err-401": Failure(401, _openai(
        "Incorrect API key provided: {key}. You can find your API key at https://platform.openai.com/account/api-keys.",
        "invalid_request_error", "invalid_api_key")),
    "err-401-organisation": Failure(401, _openai("You must be a member of an organization to use the API.", "invalid_request_error")),
    "err-401-address": Failure(401, _openai("Your IP address is not authorized to use this API key.", "invalid_request_error",
                                            "ip_not_authorized")),
    "err-401-unknown": Failure(401, {"detail": "no"}),
    "err-403-unknown": Failure(403, {"message": "forbidden"}),
    "err-403-country": Failure(403, _openai("Country, region, or territory not supported", "request_forbidden",
                                            "unsupported_country_region_territory")),
    "err-404-model": Failure(404, _openai("The model `{model}` does not exist or you do not have access to it.",
                                          "invalid_request_error", "model_not_found")),
    "err-404-path": Failure(404, "404 page not found"),
    "err-quota": Failure(429, _QUOTA),
    "err-402": Failure(402, _QUOTA),
    "err-balance": Failure(402, _openai("Insufficient Balance", "unknown_error", "invalid_request_error")),  # DeepSeek
    "err-credit": Failure(429, _openai("Your credit balance is exhausted.", "insufficient_quota", "credit_balance_exhausted")),
    "err-spend-limit": Failure(402, _openai("You have reached your spend limit.", "billing_error", "project_spend_limit_exceeded")),
    "err-usage-limit": Failure(429, _openai("The organization's usage limit is reached.", "insufficient_quota",
                                            "organization_usage_limit_exceeded")),
    # throttling
    "err-429": Failure(429, _RATE, {"retry-after": "1", "retry-after-ms": "1000", **_LIMITS}),
    "err-429-ms": Failure(429, _RATE, {"retry-after-ms": "300", **_LIMITS}),
    "err-429-date": Failure(429, _RATE, {"retry-after": "{in 2 s}", **_LIMITS}),
    "err-429-bare": Failure(429, _openai("Too many requests", "tokens", "rate_limit_exceeded")),
    "err-429-azure": Failure(429, _RATE, {"retry-after": "1", "x-ratelimit-reset-requests": "1", "x-ratelimit-reset-tokens": "-1"}),
    "err-slow-down": Failure(503, _openai("The server is under load: reduce your request rate.", "service_unavailable_error", "slow_down")),
    # worth another try
    "err-408": Failure(408, _openai("Request timed out.", "timeout")),
    "err-409": Failure(409, _openai("The resource was changed by another request.", "conflict_error")),
    "err-500": Failure(500, _SERVER),
    "err-502": Failure(502, _SERVER),
    "err-502-html": Failure(502, _PAGE),
    "err-503": Failure(503, _openai("The model is currently overloaded with other requests.", "server_is_overloaded")),
    "err-503-loading": Failure(503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}),
    "err-504": Failure(504, _openai("Gateway timeout", "server_error")),
    "err-500-should-not-retry": Failure(500, _SERVER, {"x-should-retry": "false"}),
}  # fmt: skip


def failure(found: Failure, ask: Ask) -> Reply:
    text = found.body if isinstance(found.body, str) else json.dumps(found.body)
    masked = f"{ask.key[:8]}{'*' * 12}{ask.key[-4:]}"  # as OpenAI shows a wrong key
    text = text.replace("{key}", masked).replace("{model}", str(ask.body.get("model")))
    headers = dict(found.headers) | {name[2:]: value for name, value in ask.params.items() if name.startswith("h.")}
    soon = email.utils.formatdate(time.time() + 2, usegmt=True)
    return Reply(
        text.encode(),
        found.status,
        {name: value.replace("{in 2 s}", soon) for name, value in headers.items()},
        "text/html" if text.startswith("<") else "application/json" if text.startswith("{") else "text/plain",
    )
