"""The error table, row by row; and that no words of an upstream can break or leak anything."""

from __future__ import annotations

import email.utils
import time
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import ErrorObject, Failure, Kind, Phase, Scope, Verdict, error_object, http_status, killed_by, redact, verdict
from tests.real.upstream.ask import Ask
from tests.real.upstream.failures import FAILURES, failure
from tests.unit.vendor_errors import ROWS, Row

KEY = "sk-abcdefghijklmnopwxyz"


def http(status: int, body: Any, **headers: str) -> Verdict:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return verdict(Failure("http", f"HTTP status {status} with application/json", status, data, given))


def in_stream(error: Any) -> Verdict:
    return verdict(Failure("stream_error", "an error inside the stream", None, msgspec.json.encode({"error": error})))


def openai(message: str, kind: str | None = None, code: str | int | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def of(behaviour: str) -> Verdict:
    reply = failure(FAILURES[behaviour], Ask({"model": "m"}, behaviour, KEY))
    assert isinstance(reply.body, bytes)
    headers = {name.lower(): value for name, value in reply.headers.items()}
    return verdict(Failure("http", f"HTTP status {reply.status} with text/html", reply.status, reply.body, headers))


AUTHENTICATION, CONFIGURATION, QUOTA = "AuthenticationError", "ConfigurationError", "APIQuotaExceededError"

# behaviour of the test upstream: scope, reason of the Event, the status that the requester's service makes of it
TABLE: dict[str, tuple[Scope, str | None, int]] = {
    "err-400": (Scope.REQUEST, None, 400),
    "err-400-body": (Scope.REQUEST, None, 400),
    "err-413": (Scope.REQUEST, None, 400),
    "err-422": (Scope.REQUEST, None, 400),
    "err-context": (Scope.REQUEST, None, 400),
    "err-context-llamacpp": (Scope.REQUEST, None, 400),
    "err-context-together": (Scope.REQUEST, None, 400),
    "err-content-policy": (Scope.REQUEST, None, 400),
    "err-too-large": (Scope.REQUEST, None, 429),
    "err-401": (Scope.NODE, AUTHENTICATION, 401),
    "err-401-organisation": (Scope.NODE, AUTHENTICATION, 400),
    "err-401-address": (Scope.NODE, AUTHENTICATION, 401),
    "err-401-unknown": (Scope.NODE, AUTHENTICATION, 401),
    "err-403-unknown": (Scope.NODE, AUTHENTICATION, 403),
    "err-403-country": (Scope.NODE, AUTHENTICATION, 403),
    "err-404-model": (Scope.NODE, CONFIGURATION, 404),
    "err-404-path": (Scope.REQUEST, None, 404),
    "err-quota": (Scope.NODE, QUOTA, 429),
    "err-402": (Scope.NODE, QUOTA, 429),
    "err-balance": (Scope.NODE, QUOTA, 429),
    "err-credit": (Scope.NODE, QUOTA, 429),
    "err-spend-limit": (Scope.NODE, QUOTA, 429),
    "err-usage-limit": (Scope.NODE, QUOTA, 429),
    "err-429": (Scope.THROTTLE, None, 429),
    "err-429-ms": (Scope.THROTTLE, None, 429),
    "err-429-date": (Scope.THROTTLE, None, 429),
    "err-429-bare": (Scope.THROTTLE, None, 429),
    "err-429-azure": (Scope.THROTTLE, None, 429),
    "err-slow-down": (Scope.THROTTLE, None, 503),
    "err-408": (Scope.RETRY, None, 504),
    "err-409": (Scope.RETRY, None, 409),
    "err-500": (Scope.RETRY, None, 500),
    "err-502": (Scope.RETRY, None, 500),
    "err-502-html": (Scope.RETRY, None, 500),
    "err-503": (Scope.RETRY, None, 503),
    "err-503-loading": (Scope.RETRY, None, 503),
    "err-504": (Scope.RETRY, None, 500),
    "err-500-should-not-retry": (Scope.REQUEST, None, 500),
}


def test_the_table_knows_every_documented_failure() -> None:
    assert TABLE.keys() == FAILURES.keys()


@pytest.mark.parametrize("behaviour", TABLE)
def test_a_documented_failure(behaviour: str) -> None:
    judged = of(behaviour)
    assert (judged.scope, judged.reason, http_status(judged.error)) == TABLE[behaviour]
    check_object(judged.error)
    body = FAILURES[behaviour].body
    if isinstance(body, dict) and "error" in body:
        assert judged.error["type"] == body["error"]["type"]
    if isinstance(body, dict) and behaviour not in ("err-401", "err-422"):
        said = body["error"]["message"] if "error" in body else body.get("message") or body.get("detail")
        assert judged.error["message"] == str(said).replace("{model}", "m")


def test_what_is_no_object_becomes_readable_words() -> None:
    assert of("err-502-html").error["message"] == "The upstream answered HTTP status 502 with text/html."
    assert of("err-404-path").error["message"].endswith(": 404 page not found")
    assert "field required" in of("err-422").error["message"]
    assert http(500, {"error": "out of luck"}).error["message"] == "out of luck"
    assert http(500, {"error": None, "message": "m"}).error["message"] == "m"
    assert http(500, [openai("as Google wraps it")]).error["message"] == "as Google wraps it"
    assert http(503, b"upstream connect error").error["message"].endswith(": upstream connect error")
    assert http(500, b"").error["message"].endswith("application/json.")


@pytest.mark.parametrize(
    ("kind", "scope", "status"),
    [
        ("refused", Scope.RETRY, 502), ("reset", Scope.RETRY, 502), ("timeout", Scope.RETRY, 504), ("cut", Scope.RETRY, 502),
        ("garbled", Scope.RETRY, 502), ("unresolved", Scope.THROTTLE, 502), ("tls", Scope.THROTTLE, 502),
    ],
)  # fmt: skip
def test_no_answer_at_all(kind: Kind, scope: Scope, status: int) -> None:
    judged = verdict(Failure(kind, "detail"))
    assert (judged.scope, judged.reason, http_status(judged.error)) == (scope, None, status)
    check_object(judged.error)


@pytest.mark.parametrize(
    ("error", "scope"),
    [
        ({"message": "m", "type": "server_error", "code": None}, Scope.RETRY),
        ({"message": "m", "type": "server_error", "code": 500}, Scope.RETRY),  # llama.cpp
        ({"message": "m", "type": "InternalServerError", "code": 500}, Scope.RETRY),  # vLLM
        ({"message": "m", "type": "unavailable_error", "code": 503}, Scope.RETRY),
        ({"message": "m", "type": "BadRequestError", "code": 400}, Scope.REQUEST),
        ({"message": "m", "code": "502"}, Scope.RETRY),
        ({"message": "m", "type": "exceed_context_size_error", "code": 400}, Scope.REQUEST),
        ({"message": "m", "type": "invalid_request_error", "code": None}, Scope.REQUEST),
        ({"message": "m", "type": "overloaded_error"}, Scope.RETRY),
        ({"message": "m", "type": "tokens", "code": "rate_limit_exceeded"}, Scope.THROTTLE),
        ({"message": "m", "code": 429}, Scope.THROTTLE),  # OpenRouter
        ({"message": "m", "type": "insufficient_quota", "code": "insufficient_quota"}, Scope.NODE),
        ({"message": "m", "code": "model_not_found"}, Scope.NODE),
        ({"message": "m", "code": "invalid_api_key"}, Scope.NODE),
        ({"message": "m"}, Scope.RETRY),
        ("something broke", Scope.RETRY),
    ],
)
def test_an_error_inside_a_stream_is_judged_by_its_names(error: Any, scope: Scope) -> None:
    assert in_stream(error).scope is scope


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.vendor}-{row.status}-{row.note}")
def test_what_vendors_say(row: Row) -> None:
    judged = verdict(Failure(row.kind, f"HTTP status {row.status}", row.status, row.bytes))
    assert (judged.scope, judged.reason, judged.confirm) == (row.scope, row.reason, row.confirm)
    assert http_status(judged.error) == row.shown
    check_object(judged.error)
    for name in ("type", "param", "code"):
        if row.said.get(name) is not None and judged.reason != QUOTA:  # its code is made known to the requester's service
            assert judged.error[name] == row.said[name]
    if isinstance(message := row.said.get("message"), str):
        assert judged.error["message"] == redact(message)


def test_every_vendor_has_rows_of_its_own() -> None:
    assert {row.vendor for row in ROWS} >= {"OpenAI", "Azure", "DeepSeek", "Together", "Groq", "vLLM", "llama.cpp", "llamafile"}
    assert len({(row.vendor, row.status, row.note) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("body", [b"", b"<html>no</html>", b'{"detail": "no"}', b"[]", b'{"error": {"code": "%d"}}', b"\xff"])
def test_a_refusal_that_is_not_understood_is_confirmed_first(status: int, body: bytes) -> None:
    """One odd request could stop every node otherwise; and a type that is the node's own word decides nothing."""
    judged = http(status, body)
    assert (judged.scope, judged.reason, judged.confirm) == (Scope.NODE, AUTHENTICATION, True)


@pytest.mark.parametrize("status", [400, 403, 404])
def test_words_that_quote_the_request_do_not_stop_the_node(status: int) -> None:
    for words in ("the model `x` does not exist", "Model Not Exist", "Unauthorized: Invalid API Key", "insufficient_quota"):
        assert http(status, openai(f"Invalid value: '{words}'", "invalid_request_error")).scope is Scope.REQUEST


@pytest.mark.parametrize("body", [openai("m", "insufficient_quota"), openai("m", "tokens"), openai("m", "server_error"), openai("m", "x")])
def test_after_the_first_output_there_is_only_an_end(body: Any) -> None:
    failure = Failure("stream_error", "an error inside the stream", None, msgspec.json.encode(body))
    judged = verdict(failure, phase="begun")
    assert judged == Verdict(Scope.REQUEST, verdict(failure).error)


@pytest.mark.parametrize("kind", ["refused", "reset", "timeout", "cut", "garbled", "unresolved", "tls"])
def test_no_answer_after_the_first_output(kind: Kind) -> None:
    assert verdict(Failure(kind, "detail"), phase="begun").scope is Scope.REQUEST


def test_x_should_retry_overrides() -> None:
    assert http(400, openai("m"), x_should_retry="true").scope is Scope.RETRY
    assert http(503, openai("m"), x_should_retry="False").scope is Scope.REQUEST
    assert http(401, openai("m", "invalid_request_error"), x_should_retry="true").scope is Scope.NODE
    assert http(429, openai("m"), x_should_retry="false").scope is Scope.THROTTLE


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "7"}, 7), ({"retry-after": "0.5"}, 0.5), ({"retry-after-ms": "300", "retry-after": "1"}, 0.3),
        ({"retry-after": "120"}, 120), ({"retry-after": "121"}, None), ({"retry-after": "0"}, None), ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None), ({"retry-after": "1e1"}, None), ({"retry-after": "soon"}, None), ({}, None),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, None),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT", "date": "Fri, 31 Dec 1999 23:59:39 GMT"}, 20),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20s"}, 2),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m30s"}, 9),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "12ms"}, 0.0012),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "60"}, 6),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "-1"}, None),
        ({"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "1m30s"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "23h50m"}, None),
    ],
)  # fmt: skip
def test_how_long_the_upstream_asks_to_wait(headers: dict[str, str], wait_s: float | None) -> None:
    judged = verdict(Failure("http", "", 429, b"", headers))
    assert judged.wait_s == (None if wait_s is None else pytest.approx(wait_s))


def test_a_date_counts_from_now() -> None:
    now_s = float(int(time.time()))
    headers = {"retry-after": email.utils.formatdate(now_s + 30, usegmt=True)}
    assert verdict(Failure("http", "", 503, b"", headers), now_s=now_s).wait_s == 30
    assert verdict(Failure("http", "", 400, b"", headers), now_s=now_s).wait_s is None


def check_object(error: ErrorObject) -> None:
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    assert isinstance(error["type"], str) and error["type"]
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or (isinstance(error["code"], str | int) and not isinstance(error["code"], bool))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(error)) == error  # it crosses the channel
    assert msgspec.json.decode(msgspec.json.encode(error)) == error
    assert 400 <= http_status(error) <= 599


_names = st.sampled_from(["error", "message", "type", "param", "code", "detail", "x"])
_leaf = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
_vocabulary = st.sampled_from(
    ["insufficient_quota", "rate_limit_exceeded", "server_error", "invalid_api_key", "model_not_found", "500", "²"]
)
_anything = st.recursive(_leaf | _vocabulary, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=5))
_bodies = st.binary(max_size=200) | _anything.map(lambda value: msgspec.json.encode(value) if not _huge(value) else b"1" * 400)
_header_names = st.sampled_from(
    ["retry-after", "retry-after-ms", "date", "x-should-retry", "x-ratelimit-reset-tokens", "x-ratelimit-remaining-tokens"]
)
_header_values = st.text() | st.sampled_from(["true", "false", "0", "1", "-1", "nan", "6m0s", "Fri, 31 Dec 9999 23:59:59 GMT"])


def _huge(value: object) -> bool:
    if isinstance(value, dict | list):
        return any(_huge(item) for item in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and not -(2**63) <= value < 2**64


@given(
    st.none() | st.integers(100, 999), _bodies, st.dictionaries(_header_names, _header_values, max_size=4),
    st.sampled_from(get_args(Phase)),
)  # fmt: skip
def test_nothing_that_an_upstream_says_breaks_the_verdict(status: int | None, body: bytes, headers: dict[str, str], phase: Phase) -> None:
    failure = Failure("http" if status else "stream_error", "detail", status, body, headers)
    judged = verdict(failure, ("secret-12345",), phase=phase)
    check_object(judged.error)
    assert judged.wait_s is None or 0 < judged.wait_s <= 120
    assert (judged.reason is None) == (judged.scope is not Scope.NODE)
    assert judged.scope is Scope.NODE or not judged.confirm
    assert phase != "begun" or judged.scope is Scope.REQUEST


@given(st.sampled_from(get_args(Kind)), st.sampled_from(get_args(Phase)))
def test_every_kind_of_failure_has_a_verdict_in_every_phase(kind: Kind, phase: Phase) -> None:
    check_object(verdict(Failure(kind, "detail"), phase=phase).error)


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b"9" * 10_000, b'{"error":{"code":18446744073709551616}}', b'{"error":{"code":true}}', b'"\xff"']
)
def test_hostile_bodies(body: bytes) -> None:
    check_object(http(500, body).error)


def test_long_words_are_cut() -> None:
    error = http(400, openai("m" * 60_000, "t" * 60_000, "c" * 60_000)).error
    assert (len(error["message"]), len(error["type"]), len(error["code"])) == (4000, 200, 200)


def test_a_key_in_the_upstreams_words_is_taken_out() -> None:
    assert of("err-401").error["message"].startswith("Incorrect API key provided: [redacted]. You can find")
    secret = "AbCdEfGhIjKlMnOpQr"
    judged = verdict(Failure("http", "", 401, msgspec.json.encode(openai(f"no {secret}", secret, secret)), {}), (secret,))
    assert secret not in str(judged.error)
    long = msgspec.json.encode(openai("m" * 3990 + secret))  # not even a part that a cut would leave
    assert "AbCdEf" not in verdict(Failure("http", "", 401, long, {}), (secret,)).error["message"]


@pytest.mark.parametrize(
    "key",
    [
        "sk-ab***xyz", "sk-abcde************wxyz", "sk-proj-4f8aB_c-D9", "gsk_a1b2c3d4e5f6", "xai-1234567890", "hf_AbCdEf123456",
        "abcd****************wxyz", "********wxyz", "Bearer abcdefghijklmnopqrstuvwxyz", "Bearer a1b2c3d4", "Basic dXNlcjpwYXNz2g==",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.abc-DEF_123",
    ],
)  # fmt: skip
def test_what_looks_like_a_key_is_redacted(key: str) -> None:
    assert redact(f"Incorrect key: {key}, you know") == "Incorrect key: [redacted], you know"


@pytest.mark.parametrize(
    "words",
    [
        "backend 12 and backend-12 risk-free mock mock-1234567 desk-12345678 task-1234567",
        "Incorrect API key provided, key management, key_management_error, key-value pairs",
        "Bearer authentication is required; bearer token missing; basic functionality",
        "request 4e0b8a0e-1b9e-4c2a-9d55-0f2d2c5f7f11 answered in 12 ms, *** and **bold** 2**8 a*b",
        "https://platform.openai.com/account/api-keys sk-learning pulsar://localhost:6650",
        "sha256 b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ],
)
def test_normal_words_stay(words: str) -> None:
    assert redact(words) == words


def test_redact_takes_the_longest_secret_first_and_no_empty_one() -> None:
    assert redact("a key-of-mine-and-more b", ("", "key-of-mine", "key-of-mine-and-more")) == "a [redacted] b"


@pytest.mark.parametrize("word", ["a", "sk-", "-", "*", "a*", "eyJaaaaaaaaa.", "bearer ", "sk-a"])
def test_redact_takes_no_quadratic_time(word: str) -> None:
    started_s = time.monotonic()
    redact(word * (200_000 // len(word)))
    assert time.monotonic() - started_s < 1


INTERNAL = [
    "10.2.3.4", "10.2.3.4:8000", "192.168.0.7:11434", "172.16.0.1", "172.31.255.255:80", "127.0.0.1:8080", "169.254.169.254",
    "100.64.0.9:1", "0.0.0.0:8000", "[::1]:8000", "fd12:3456:789a::1", "fe80::1ff:fe23:4567:890a", "vllm.llm.svc.cluster.local",
    "vllm.llm.svc:8000", "ip-10-0-3-7.eu-west-1.compute.internal", "gpu7.local:8000", "gpu.corp", "nas.home.arpa", "localhost:8000",
]  # fmt: skip


@pytest.mark.parametrize("address", INTERNAL)
def test_addresses_of_the_nodes_network_are_not_for_requesters(address: str) -> None:
    said = http(502, openai(f"dial tcp {address}: connect: connection refused")).error["message"]
    assert said.replace("[[", "[") == "dial tcp [internal address]: connect: connection refused"
    for name in ("type", "code"):
        assert address not in str(http(500, {"error": {"message": "m", name: address, "param": f"http://{address}/v1"}}).error)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("POST http://vllm:8000/v1/chat/completions failed", "POST http://[internal address]/v1/chat/completions failed"),
        ("http://admin:hunter2@proxy.example.com:3128/", "http://[redacted]@proxy.example.com:3128/"),
        ("http://admin:hunter2@vllm:8000/", "http://[redacted]@[internal address]/"),
        ("ConnectionPool(host='vllm', port=8000): Max retries", "ConnectionPool(host='[internal address]', port=8000): Max retries"),
        ("Cannot connect to host vllm:8000 ssl:default", "Cannot connect to host [internal address] ssl:default"),
        ("lookup a.b.svc.cluster.local on 10.96.0.10:53: no such host", "lookup [internal address] on [internal address]: no such host"),
    ],
)
def test_what_proxies_tell_of_a_network(words: str, shown: str) -> None:
    assert http(502, words.encode()).error["message"] == f"The upstream answered HTTP status 502 with application/json: {shown}"
    assert http(400, openai(words)).error["message"] == shown


@pytest.mark.parametrize(
    "words",
    [
        "Visit https://platform.openai.com/account/rate-limits, version 1.10.0.1 at 8.8.8.8 or 110.0.0.1, 172.32.0.1, 100.128.1.1",
        "an internal error in local mode: localhost is no argument, corp. policy, svc; see https://console.groq.com/docs/errors.",
        "messages[0].content at 12:30:01, usage::prompt, a::1b, id fd12, https://api.together.ai/models?x=1@2",
        "connection to host api.openai.com:443 failed; https://localnews.com/internal/svc",
    ],
)
def test_public_words_stay(words: str) -> None:
    assert http(400, openai(words)).error["message"] == words


@pytest.mark.parametrize("word", ["a.", "10.", "://", "fd00:", "a", "host='", "://a", "1", "svc.", "a.svc."])
def test_looking_for_addresses_takes_no_quadratic_time(word: str) -> None:
    """The longest text that is looked through; timed against itself, as machines differ."""
    started_s = time.monotonic()
    for _ in range(20):
        http(400, openai(word * (5000 // len(word))))
    assert time.monotonic() - started_s < 10


@given(_anything, _anything)
def test_every_error_has_a_status(type_: Any, code: Any) -> None:
    assert 400 <= http_status({"message": "m", "type": type_, "param": None, "code": code}) <= 599
    assert 400 <= http_status({}) <= 599


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (error_object("", "timeout", "request_expired"), 504), (error_object("", "server_error", "node_child_died"), 500),
        (error_object("", "x", 404), 404), (error_object("", "x", "404"), 404), (error_object("", "x", "²²²"), 500),
        (error_object("", "invalid_request_error", "request_too_large"), 413), (error_object("", "service_unavailable", "x"), 503),
        (error_object("", "insufficient_quota", "credit_balance_exhausted"), 429), (error_object("", "x", "server_error"), 500),
        (error_object("", "invalid_request_error", True), 400), (error_object("", "x", 200), 500),
    ],
)  # fmt: skip
def test_http_status(error: ErrorObject, status: int) -> None:
    assert http_status(error) == status


def test_a_vendors_own_type_keeps_its_status() -> None:
    assert http_status(http(418, openai("m", "teapot_error")).error) == 418


def test_what_killed_a_process_is_named_with_its_likely_cause() -> None:
    assert killed_by(9).startswith("signal SIGKILL (most likely the kernel")
    assert killed_by(1) == "signal SIGHUP" and killed_by(77) == "signal 77"
