"""What vendors answer instead of a completion, after their documents and sources, and what the node makes of each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from errors import Kind, Scope

AUTHENTICATION, CONFIGURATION, QUOTA = "AuthenticationError", "ConfigurationError", "APIQuotaExceededError"
REQUEST, RETRY, THROTTLE, NODE = Scope.REQUEST, Scope.RETRY, Scope.THROTTLE, Scope.NODE


@dataclass(frozen=True)
class Row:
    """status: None for an error inside a stream; shown: the status that the requester's service makes of it."""

    vendor: str
    status: int | None
    note: str
    body: Any
    scope: Scope
    shown: int
    reason: str | None = None
    confirm: bool = False

    @property
    def kind(self) -> Kind:
        return "http" if self.status is not None else "stream_error"

    @property
    def bytes(self) -> bytes:
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body, ensure_ascii=False).encode()

    @property
    def said(self) -> dict[str, Any]:
        """The error object in the body, where there is one."""
        inner = self.body.get("error", self.body) if isinstance(self.body, dict) else {}
        return inner if isinstance(inner, dict) else {"message": inner}


def _error(message: str, type_: str | None = None, code: str | int | None = None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def _vllm(message: str, type_: str, code: int, param: str | None = None) -> dict[str, Any]:
    """As before 0.10; since then it stands inside `error`."""
    return {"object": "error", "message": message, "type": type_, "param": param, "code": code}


def _llama(code: int, message: str, type_: str, **more: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "type": type_} | more}


INVALID = "invalid_request_error"

OPENAI = [
    Row("OpenAI", 400, "value", _error("Invalid value: 'robot'.", INVALID, "invalid_value", "messages[0].role"), REQUEST, 400),
    Row("OpenAI", 400, "argument", _error("Unrecognized request argument supplied: foo", INVALID), REQUEST, 400),
    Row("OpenAI", 400, "context", _error("This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens.",
                                         INVALID, "context_length_exceeded", "messages"), REQUEST, 400),
    Row("OpenAI", 400, "policy", _error("Your request was rejected as a result of our safety system.", INVALID,
                                        "content_policy_violation"), REQUEST, 400),
    Row("OpenAI", 401, "key", _error("Incorrect API key provided: sk-abcde************wxyz. You can find your API key at "
                                     "https://platform.openai.com/account/api-keys.", INVALID, "invalid_api_key"), NODE, 401, AUTHENTICATION),
    Row("OpenAI", 401, "organisation", _error("You must be a member of an organization to use the API. Please contact us.",
                                              INVALID), NODE, 400, AUTHENTICATION),
    Row("OpenAI", 401, "address", _error("Your IP address is not authorized to access this resource.", INVALID, "ip_not_authorized"),
        NODE, 401, AUTHENTICATION),
    Row("OpenAI", 403, "country", _error("Country, region, or territory not supported", "request_forbidden",
                                         "unsupported_country_region_territory"), NODE, 403, AUTHENTICATION),
    Row("OpenAI", 403, "project", _error("Project `proj_x` does not have access to model `gpt-x`", INVALID, "model_not_found"),
        NODE, 404, CONFIGURATION),
    Row("OpenAI", 403, "permission", _error("You have insufficient permissions for this operation.", INVALID, "missing_scope"), REQUEST, 400),
    Row("OpenAI", 404, "model", _error("The model `gpt-x` does not exist or you do not have access to it.", INVALID, "model_not_found"),
        NODE, 404, CONFIGURATION),
    Row("OpenAI", 404, "path", _error("Invalid URL (POST /v1/chat/completion)", INVALID), NODE, 400, CONFIGURATION),
    Row("OpenAI", 409, "conflict", _error("The resource was changed by another request.", "conflict_error"), RETRY, 409),
    Row("OpenAI", 429, "rate", _error("Rate limit reached for gpt-x in organization org-x on tokens per min (TPM): Limit 10000, Used 9000, "
                                      "Requested 2000. Please try again in 6s.", "tokens", "rate_limit_exceeded"), THROTTLE, 429),
    Row("OpenAI", 429, "too large", _error("Request too large for gpt-x in organization org-x on tokens per min (TPM): Limit 30000, Requested "
                                           "45000.", "tokens", "rate_limit_exceeded"), REQUEST, 429),
    Row("OpenAI", 429, "quota", _error("You exceeded your current quota, please check your plan and billing details.", "insufficient_quota",
                                       "insufficient_quota"), NODE, 429, QUOTA),
    Row("OpenAI", 429, "billing", _error("Your account is not active, please check your billing details on our website.", "billing_not_active",
                                         "billing_not_active"), NODE, 429, QUOTA),
    Row("OpenAI", 500, "server", _error("The server had an error while processing your request. Sorry about that!", "server_error"), RETRY, 500),
    Row("OpenAI", 503, "overloaded", _error("That model is currently overloaded with other requests.", "server_error"), RETRY, 500),
    Row("OpenAI", 503, "slow down", _error("Slow down", "service_unavailable_error", "slow_down"), THROTTLE, 503),
    Row("OpenAI", None, "in stream", _error("The server had an error processing your request.", "server_error"), RETRY, 500),
    Row("OpenAI", None, "quota in stream", _error("You exceeded your current quota.", "insufficient_quota", "insufficient_quota"),
        NODE, 429, QUOTA),
]  # fmt: skip

_AZURE_FILTER = {"error": {
    "message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.", "type": None,
    "param": "prompt", "code": "content_filter", "status": 400,
    "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": True, "severity": "high"}}},
}}  # fmt: skip

AZURE = [
    Row("Azure", 400, "filter", _AZURE_FILTER, REQUEST, 400),
    Row("Azure", 400, "context", _error("This model's maximum context length is 4096 tokens.", INVALID, "context_length_exceeded", "messages"),
        REQUEST, 400),
    Row("Azure", 401, "key", {"error": {"code": "401", "message": "Access denied due to invalid subscription key or wrong API endpoint. Make sure "
                                        "to provide a valid key for an active subscription."}}, NODE, 401, AUTHENTICATION),
    Row("Azure", 401, "gateway", {"statusCode": 401, "message": "Access denied due to invalid subscription key. Make sure to provide a valid key "
                                  "for an active subscription."}, NODE, 401, AUTHENTICATION),
    Row("Azure", 401, "token", {"statusCode": 401, "message": "Unauthorized. Access token is missing, invalid, audience is incorrect or have "
                                "expired."}, NODE, 401, AUTHENTICATION, True),
    Row("Azure", 401, "role", {"error": {"code": "PermissionDenied", "message": "The principal lacks the required data action."}},
        NODE, 401, AUTHENTICATION),
    Row("Azure", 403, "network", {"error": {"code": "403", "message": "Access denied due to Virtual Network/Firewall rules."}},
        NODE, 403, AUTHENTICATION),
    Row("Azure", 403, "key off", {"error": {"code": "AuthenticationTypeDisabled", "message": "Key based authentication is disabled for this "
                                            "resource."}}, NODE, 403, AUTHENTICATION),
    Row("Azure", 403, "volume", {"error": {"code": "403", "message": "Out of call volume quota. Quota will be replenished in 2 days."}},
        NODE, 429, QUOTA),
    Row("Azure", 404, "deployment", {"error": {"code": "DeploymentNotFound", "message": "The API deployment for this resource does not exist. If "
                                               "you created the deployment within the last 5 minutes, please wait a moment and try again."}},
        NODE, 404, CONFIGURATION),
    Row("Azure", 404, "path", {"error": {"code": "404", "message": "Resource not found"}}, REQUEST, 404),
    Row("Azure", 408, "timeout", {"error": {"code": "Timeout", "message": "The operation was timeout."}}, RETRY, 504),
    Row("Azure", 429, "rate", {"error": {"code": "429", "message": "Requests to the ChatCompletions_Create Operation under Azure OpenAI API "
                                         "version 2024-10-21 have exceeded token rate limit of your current OpenAI S0 pricing tier. Please retry "
                                         "after 52 seconds."}}, THROTTLE, 429),
    Row("Azure", 429, "reached", {"error": {"code": "RateLimitReached", "message": "Your requests to gpt-x have exceeded the call rate limit."}},
        THROTTLE, 429),
    Row("Azure", 429, "quota", _error("You exceeded your current quota.", "insufficient_quota", "insufficient_quota"), NODE, 429, QUOTA),
    Row("Azure", 500, "server", {"error": {"code": "InternalServerError", "message": "Backend returned unexpected response."}}, RETRY, 500),
    Row("Azure", 503, "busy", {"error": {"code": "ServiceUnavailable", "message": "The service is temporarily unable to process your request."}},
        RETRY, 500),
    Row("Azure", None, "in stream", {"error": {"code": "429", "message": "Rate limit is exceeded. Try again in 3 seconds."}}, THROTTLE, 429),
]  # fmt: skip

DEEPSEEK = [
    Row("DeepSeek", 400, "format", _error("Failed to deserialize the JSON body into the target type: messages[0]: missing field `role`",
                                          INVALID, INVALID), REQUEST, 400),
    Row("DeepSeek", 400, "model", _error("Model Not Exist", INVALID, INVALID), NODE, 400, CONFIGURATION),
    Row("DeepSeek", 400, "context", _error("This model's maximum context length is 65536 tokens. However, you requested 70000 tokens", INVALID,
                                           INVALID), REQUEST, 400),
    Row("DeepSeek", 401, "key", _error("Authentication Fails, Your api key: ****abcd is invalid", "authentication_error", INVALID),
        NODE, 400, AUTHENTICATION),
    Row("DeepSeek", 402, "balance", _error("Insufficient Balance", "unknown_error", INVALID), NODE, 429, QUOTA),
    Row("DeepSeek", 422, "parameters", _error("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]", INVALID, INVALID),
        REQUEST, 400),
    Row("DeepSeek", 429, "rate", _error("Rate limit reached", "rate_limit_error", "rate_limit_error"), THROTTLE, 429),
    Row("DeepSeek", 500, "server", _error("Internal server error", "internal_server_error"), RETRY, 500),
    Row("DeepSeek", 503, "busy", _error("Service is too busy. We advise users to temporarily switch to alternative LLM API service providers.",
                                        "service_unavailable_error"), RETRY, 503),
]  # fmt: skip

TOGETHER = [
    Row("Together", 400, "field", {"id": "x", **_error("messages: field required", INVALID, None, "messages")}, REQUEST, 400),
    Row("Together", 401, "key", {"id": "x", **_error("Invalid API key provided. You can find your API key at "
                                                     "https://api.together.ai/settings/api-keys.", INVALID, "invalid_api_key")},
        NODE, 401, AUTHENTICATION),
    Row("Together", 402, "spend", {"id": "x", **_error("Credit limit exceeded, please navigate to https://api.together.ai/settings/billing.",
                                                       "credit_limit")}, NODE, 429, QUOTA),
    Row("Together", 403, "context", {"id": "x", **_error("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097. Given: "
                                                         "5000 `inputs` tokens", INVALID, None, "max_tokens")}, REQUEST, 400),
    Row("Together", 404, "model", {"id": "x", **_error("Unable to access model x. Please visit https://api.together.ai/models to view the list "
                                                       "of supported models.", INVALID, "model_not_available")}, NODE, 404, CONFIGURATION),
    Row("Together", 429, "rate", {"id": "x", **_error("You have been rate limited. Your rate limit is 60 queries per minute.", "rate_limit")},
        THROTTLE, 429),
    Row("Together", 500, "server", {"id": "x", **_error("Internal server error", "server_error")}, RETRY, 500),
    Row("Together", 503, "overloaded", {"id": "x", **_error("The server is overloaded or not ready yet.", "service_unavailable")}, RETRY, 503),
    Row("Together", 524, "cloudflare", "error code: 524", RETRY, 500),
    Row("Together", 529, "busy", "", RETRY, 500),
]  # fmt: skip

GROQ = [
    Row("Groq", 400, "property", _error("'messages.0' : for 'role:user' the following must be satisfied[('messages.0.content' : value must be a "
                                        "string)]", INVALID), REQUEST, 400),
    Row("Groq", 400, "tool use", {"error": {"message": "Failed to call a function. Please adjust your prompt.", "type": INVALID,
                                            "code": "tool_use_failed", "failed_generation": "<tool>"}}, REQUEST, 400),
    Row("Groq", 400, "decommissioned", _error("The model `x` has been decommissioned and is no longer supported.", INVALID,
                                              "model_decommissioned"), NODE, 404, CONFIGURATION),
    Row("Groq", 400, "restricted", _error("Organization has been restricted. Please reach out to support if you believe this was in error.",
                                          INVALID, "organization_restricted"), NODE, 400, AUTHENTICATION),
    Row("Groq", 401, "key", _error("Invalid API Key", INVALID, "invalid_api_key"), NODE, 401, AUTHENTICATION),
    Row("Groq", 403, "blocked", _error("The model `x` is blocked at the project level.", "permissions_error",
                                       "model_permission_blocked_project"), NODE, 404, CONFIGURATION),
    Row("Groq", 403, "network", {"error": {"message": "Access denied. Please check your network settings."}}, NODE, 403, AUTHENTICATION, True),
    Row("Groq", 404, "model", _error("The model `x` does not exist or you do not have access to it.", INVALID, "model_not_found"),
        NODE, 404, CONFIGURATION),
    Row("Groq", 404, "path", _error("Unknown request URL: POST /v1/chat/completions. Please check the URL for typos", INVALID, "unknown_url"),
        NODE, 404, CONFIGURATION),
    Row("Groq", 413, "too large", _error("Request too large for model `x` in organization `org_x` on tokens per minute (TPM): Limit 6000, "
                                         "Requested 7000, please reduce your message size and try again.", "tokens", "rate_limit_exceeded"),
        REQUEST, 429),
    Row("Groq", 429, "rate", _error("Rate limit reached for model `x` in organization `org_x` on tokens per minute (TPM): Limit 6000, Used 5540, "
                                    "Requested 1239. Please try again in 7.79s.", "tokens", "rate_limit_exceeded"), THROTTLE, 429),
    Row("Groq", 498, "flex", _error("Flex tier capacity exceeded, please try again later", "capacity_exceeded"), THROTTLE, 498),
    Row("Groq", 500, "server", _error("Internal Server Error", "internal_server_error"), RETRY, 500),
    Row("Groq", 502, "gateway", "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n</html>", RETRY, 500),
    Row("Groq", 503, "unavailable", _error("Service Unavailable", "internal_server_error"), RETRY, 503),
]  # fmt: skip

VLLM = [
    Row("vLLM", 400, "context", _vllm("This model's maximum context length is 2048 tokens. However, you requested 2100 tokens in the messages",
                                      "BadRequestError", 400), REQUEST, 400),
    Row("vLLM", 400, "new", {"error": {"message": "1 validation error", "type": "Bad Request", "param": "messages", "code": 400}}, REQUEST, 400),
    Row("vLLM", 401, "key", {"error": "Unauthorized"}, NODE, 401, AUTHENTICATION, True),
    Row("vLLM", 404, "model", _vllm("The model `x` does not exist.", "NotFoundError", 404), NODE, 404, CONFIGURATION),
    Row("vLLM", 404, "new", {"error": {"message": "The model `x` does not exist.", "type": "NotFoundError", "param": "model", "code": 404}},
        NODE, 404, CONFIGURATION),
    Row("vLLM", 404, "path", {"detail": "Not Found"}, REQUEST, 404),
    Row("vLLM", 422, "fields", {"detail": [{"loc": ["body", "messages"], "msg": "field required", "type": "value_error.missing"}]}, REQUEST, 400),
    Row("vLLM", 500, "engine", _vllm("EngineCore encountered an issue. See stack trace (above) for the root cause.", "InternalServerError", 500),
        RETRY, 500),
    Row("vLLM", 500, "text", "Internal Server Error", RETRY, 500),
    Row("vLLM", 503, "scaling", {"error": "Model is scaling. Please try again later."}, RETRY, 500),
    Row("vLLM", None, "in stream", {"error": _vllm("EngineCore encountered an issue.", "InternalServerError", 500)}, RETRY, 500),
    Row("vLLM", None, "request's in stream", {"error": _vllm("Guided decoding failed", "BadRequestError", 400)}, REQUEST, 400),
]  # fmt: skip

LLAMA_CPP = [
    Row("llama.cpp", 400, "context", _llama(400, "the request exceeds the available context size (4096 tokens), try increasing it",
                                            "exceed_context_size_error", n_prompt_tokens=9001, n_ctx=4096), REQUEST, 400),
    Row("llama.cpp", 400, "field", _llama(400, "'messages' is required", INVALID), REQUEST, 400),
    Row("llama.cpp", 401, "key", _llama(401, "Invalid API Key", "authentication_error"), NODE, 401, AUTHENTICATION),
    Row("llama.cpp", 404, "path", _llama(404, "File Not Found", "not_found_error"), REQUEST, 404),
    Row("llama.cpp", 500, "server", _llama(500, "Failed to parse messages: Unsupported content part type", "server_error"), RETRY, 500),
    Row("llama.cpp", 501, "unsupported", _llama(501, "This server does not support embeddings.", "not_supported_error"), REQUEST, 501),
    Row("llama.cpp", 503, "loading", _llama(503, "Loading model", "unavailable_error"), RETRY, 503),
    Row("llama.cpp", None, "in stream", _llama(500, "Compute error.", "server_error"), RETRY, 500),
    Row("llama.cpp", None, "context in stream", _llama(400, "the request exceeds the available context size", "exceed_context_size_error"),
        REQUEST, 400),
]  # fmt: skip

LLAMAFILE = [  # 0.8.1: plain text mostly
    Row("llamafile", 401, "key", "Unauthorized: Invalid API Key", NODE, 401, AUTHENTICATION),
    Row("llamafile", 404, "path", "File Not Found", REQUEST, 404),
    Row("llamafile", 404, "slot", "slot unavailable", REQUEST, 404),
    Row("llamafile", 500, "parse", "500 Internal Server Error\n[json.exception.parse_error.101] parse error at line 1, column 1", RETRY, 500),
    Row("llamafile", 503, "loading", {"status": "loading model"}, RETRY, 500),
]

OTHERS = [
    Row("Ollama", 404, "model", _error("model 'x' not found, try pulling it first", "api_error"), NODE, 500, CONFIGURATION),
    Row("Anthropic", 529, "overloaded", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, RETRY, 503),
    Row("OpenRouter", None, "in stream", {"error": {"message": "m", "code": 429}}, THROTTLE, 429),
    Row("Google", 429, "list", [_error("Resource has been exhausted", None, 429)], THROTTLE, 429),
    Row("a proxy", 404, "path", "404 page not found", REQUEST, 404),
    Row("a proxy", 429, "page", "<html>slow</html>", THROTTLE, 429),
    Row("a proxy", 302, "redirect", "", REQUEST, 400),
    Row("a proxy", 402, "empty", "", NODE, 429, QUOTA),
    Row("a proxy", 429, "words", {"error": "insufficient_quota"}, NODE, 429, QUOTA),
    Row("a proxy", 429, "flag", {"error": True, "message": "Too many requests"}, THROTTLE, 429),
    Row("a proxy", 503, "envoy", "upstream connect error or disconnect/reset before headers. reset reason: connection failure", RETRY, 500),
]

ROWS = [*OPENAI, *AZURE, *DEEPSEEK, *TOGETHER, *GROQ, *VLLM, *LLAMA_CPP, *LLAMAFILE, *OTHERS]
