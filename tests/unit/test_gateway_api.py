"""Whole answers, refusals and the node's side, over real HTTP, with OpenAI's own client."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from gateway.publisher import MAX_MESSAGE_BYTES, MessageTooBig, PublishFailed
from tests.unit.gateway_fakes import COMPLETION, Bench, chunk, error, frame, running, until


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with running() as bench:
        yield bench


def error_of(response: Any) -> dict[str, Any]:
    found = json.loads(response.data)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert found["message"]
    return dict(found)


def test_a_whole_answer_comes_back_as_it_was_sent(bench: Bench) -> None:
    body = b'{ "model":"m",\n "messages":[{"role":"user","content":"\xc3\xa9"}], "unknown": 1.50 }'
    waiting = bench.pool.submit(bench.post, "/api/v1/chat/completions", body)
    request = bench.queue.next()
    assert bytes(request.data) == body
    assert request.stream is False
    assert request.endpoint == f"{bench.url}/res"
    raw = b'{"request_id":"%s","data": {"choices":[],  "id":"x"}}' % request.request_id.encode()
    taken = bench.http.request("POST", request.endpoint, body=raw)
    assert (taken.status, taken.data) == (200, b'{"status":"ok"}')
    answer = waiting.result()
    assert (answer.status, answer.data) == (200, b'{"choices":[],  "id":"x"}')
    assert answer.headers["x-request-id"] == request.request_id
    assert answer.headers["content-type"] == "application/json"


def test_openais_client_gets_a_completion(bench: Bench) -> None:
    waiting = bench.create()
    bench.answer(bench.queue.next(), COMPLETION)
    assert waiting.result().choices[0].message.content == "Paris"


def test_an_answer_that_comes_before_the_queue_has_confirmed_is_taken(bench: Bench) -> None:
    taken: list[int] = []
    bench.queue.before_confirmed = lambda request: taken.append(bench.answer(request, COMPLETION).status)
    try:
        assert bench.ask().result().status == 200
    finally:
        bench.queue.before_confirmed = None
    bench.queue.next()
    assert taken == [200]


def test_headers_reach_the_node_without_credentials(bench: Bench) -> None:
    waiting = bench.pool.submit(
        bench.http.request, "POST", f"{bench.url}/v1/chat/completions", body=b'{"model":"m","messages":[{}]}',
        headers={"user-agent": "curl/8", "Authorization": "Bearer k-secret", "Cookie": "a=k-secret", "x-trace": "1"},
    )
    request = bench.queue.next()
    assert request.metadata is not None
    headers = request.metadata["headers"]
    assert headers["User-Agent"] == ["curl/8"]
    assert headers["X-Trace"] == ["1"]
    assert "k-secret" not in json.dumps(request.metadata)
    bench.answer(request, COMPLETION)
    waiting.result()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (error("invalid_request_error"), openai.BadRequestError),
        (error("invalid_request_error", "model_not_found"), openai.NotFoundError),
        (error("invalid_request_error", "invalid_api_key"), openai.AuthenticationError),
        (error("requests", "rate_limit_exceeded"), openai.RateLimitError),
        (error("server_error"), openai.InternalServerError),
        (error("exceed_context_size_error", 400), openai.BadRequestError),
        ({"error": "a text"}, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_from_a_node_is_raised_by_openais_client(bench: Bench, answer: Any, expected: type[Exception], stream: bool) -> None:
    waiting = bench.create(stream=stream)
    bench.answer(bench.queue.next(), answer)
    with pytest.raises(expected) as raised:
        waiting.result()
    assert raised.value.body["message"] in ("no such luck", "a text")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"", 400, "invalid_json", None),
        (b'{"model":', 400, "invalid_json", None),
        (b'{"model":"m","messages":[{"content":"\xff"}]}', 400, "invalid_json", None),
        (b'{"model":"m","messages":[{}],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "invalid_json", None),
        (b"[]", 400, "invalid_type", None),
        (b'{"messages":[{}]}', 400, "missing_required_parameter", "model"),
        (b'{"model":"","messages":[{}]}', 400, "missing_required_parameter", "model"),
        (b'{"model":7,"messages":[{}]}', 400, "invalid_type", "model"),
        (b'{"model":"m"}', 400, "missing_required_parameter", "messages"),
        (b'{"model":"m","messages":[]}', 400, "empty_array", "messages"),
        (b'{"model":"m","messages":"hi"}', 400, "invalid_type", "messages"),
        (b'{"model":"m","messages":[{},"hi"]}', 400, "invalid_type", "messages[1]"),
        (b'{"model":"m","messages":[{}],"stream":"yes"}', 400, "invalid_type", "stream"),
        (b'{"model":"m","messages":[{}],"stream":true,"stream_options":1}', 400, "invalid_type", "stream_options"),
        (b'{"model":"m","messages":[{}],"stream_options":{}}', 400, None, "stream_options"),
        (b'{"model":"meta/m","messages":[{}]}', 404, "model_not_found", "model"),
        (b'{"model":"a b","messages":[{}]}', 404, "model_not_found", "model"),
        (b'{"model":"m-m-subscription-DLQ","messages":[{}]}', 404, "model_not_found", "model"),
        (b'{"model":"m","messages":[{}],"x":"' + b"x" * MAX_MESSAGE_BYTES + b'"}', 413, "request_too_large", None),
        # the body would fit, but not with its envelope
        (b'{"model":"m","messages":[{}],"x":"' + b"x" * (MAX_MESSAGE_BYTES - 40) + b'"}', 413, "request_too_large", None),
    ],
)
def test_what_cannot_be_asked_is_refused_before_it_is_published(
    bench: Bench, body: bytes, status: int, code: str | None, param: str | None
) -> None:
    response = bench.post("/v1/chat/completions", body)
    refused = error_of(response)
    assert (response.status, refused["code"], refused["param"]) == (status, code, param)
    assert refused["type"] == "invalid_request_error"
    assert bench.queue.published.empty()


def test_a_body_of_unknown_length_is_read_no_further_than_the_limit(bench: Bench) -> None:
    """Chunked, so that only reading tells its size."""
    address = bench.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=10) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        block = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        for _ in range(MAX_MESSAGE_BYTES // 0x10000 + 1):
            client.sendall(block)
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/chat/completions", 405), ("DELETE", "/res", 405), ("GET", "/v1/zzz", 404), ("GET", "/res/ws", 404)],
)
def test_wrong_paths_and_methods_get_openais_error(bench: Bench, method: str, path: str, status: int) -> None:
    response = bench.http.request(method, bench.url + path)
    assert response.status == status
    assert path in error_of(response)["message"]


@pytest.mark.parametrize(
    ("failure", "status", "code"), [(PublishFailed("Timeout"), 503, "queue_unavailable"), (MessageTooBig("x"), 413, "request_too_large")]
)
def test_a_failed_publish_is_told_and_leaves_nothing_pending(bench: Bench, failure: Exception, status: int, code: str) -> None:
    bench.queue.refusal = failure
    try:
        response = bench.ask().result()
    finally:
        bench.queue.refusal = None
    assert (response.status, error_of(response)["code"]) == (status, code)
    until(lambda: len(bench.gateway.pending) == 0, "nothing is pending")


def test_no_answer_is_a_timeout() -> None:
    with running(timeout_s=0.1) as bench:
        response = bench.ask().result()
        assert (response.status, error_of(response)["code"]) == (504, "timeout")
        until(lambda: len(bench.gateway.pending) == 0, "nothing is pending")
        late = bench.answer(bench.queue.next(), COMPLETION)
        assert late.status == 404


def test_an_answer_is_taken_once(bench: Bench) -> None:
    waiting = bench.ask()
    request = bench.queue.next()
    assert [bench.answer(request, COMPLETION).status for _ in range(2)] == [200, 404]
    assert waiting.result().status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"[]", 400), (b'{"data":{}}', 400), (b'{"request_id":1,"data":{}}', 400), (b'{"request_id":"none"}', 400),
        (b'{"request_id":"none","data":{}}', 404),
    ],
)
def test_what_is_no_answer_is_refused(bench: Bench, body: bytes, status: int) -> None:
    response = bench.post("/res", body)
    assert response.status == status
    error_of(response)


@pytest.mark.parametrize("padding", [0, 100_000, 1_000_000, 4_000_000])
def test_a_requester_that_hangs_up_is_forgotten_at_once(bench: Bench, padding: int) -> None:
    """Also one whose body was long: the server stops reading behind it, and would not see that its client left."""
    client = socket.create_connection(("127.0.0.1", int(bench.url.rsplit(":", 1)[1])))
    body = b'{"model":"m","messages":[{"content":"%s"}]}' % (b"x" * padding)
    client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
    client.sendall(body)
    request = bench.queue.next()
    assert len(bench.gateway.pending) == 1
    client.close()
    until(lambda: len(bench.gateway.pending) == 0, "the requester is forgotten")
    assert bench.answer(request, COMPLETION).status == 404


def test_a_whole_answer_over_a_socket_is_understood(bench: Bench) -> None:
    with bench.socket() as node:
        waiting = bench.ask()
        node.send(frame(bench.queue.next(), COMPLETION, end=True))
        assert json.loads(waiting.result().data) == COMPLETION
        waiting = bench.ask()
        request = bench.queue.next()
        node.send(frame(request, COMPLETION))
        node.send(frame(request, end=True))
        assert json.loads(waiting.result().data) == COMPLETION


def test_a_stream_to_a_requester_who_did_not_ask_is_a_bad_answer(bench: Bench) -> None:
    with bench.socket() as node:
        waiting = bench.ask()
        request = bench.queue.next()
        for text in "ab":
            node.send(frame(request, chunk(text)))
        node.send(frame(request, end=True))
        response = waiting.result()
    assert (response.status, error_of(response)["code"]) == (502, "bad_answer")


def test_models_are_those_that_were_answered_for(bench: Bench) -> None:
    waiting = bench.ask(model="seen-model")
    bench.answer(bench.queue.next(), COMPLETION)
    waiting.result()
    refused = bench.ask(model="refused-model")
    bench.answer(bench.queue.next(), error("server_error"))
    refused.result()
    listed = [model.id for model in bench.client.models.list()]
    assert "seen-model" in listed
    assert "refused-model" not in listed
    assert bench.client.models.retrieve("seen-model").object == "model"
    with pytest.raises(openai.NotFoundError):
        bench.client.models.retrieve("refused-model")


def test_health_and_open_cors(bench: Bench) -> None:
    health = bench.http.request("GET", f"{bench.url}/health", headers={"Origin": "https://a.example"})
    assert (health.status, json.loads(health.data)["status"]) == (200, "ok")
    assert health.headers["access-control-allow-origin"] == "*"
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    preflight = bench.http.request("OPTIONS", f"{bench.url}/v1/chat/completions", headers=asked)
    assert preflight.status == 200
    assert "authorization" in preflight.headers["access-control-allow-headers"]


def test_at_the_end_running_requests_get_their_time_and_new_ones_are_refused() -> None:
    with running(drain_timeout_s=10) as bench:
        waiting = bench.ask()
        request = bench.queue.next()
        bench.stop.set()
        until(lambda: bench.gateway.draining, "draining")
        refused = bench.ask().result()
        assert (refused.status, error_of(refused)["code"]) == (503, "shutting_down")
        assert bench.answer(request, COMPLETION).status == 200
        assert waiting.result().status == 200


def test_at_the_end_what_is_not_answered_is_refused() -> None:
    with running(drain_timeout_s=0.1) as bench:
        waiting = bench.ask()
        bench.queue.next()
        bench.stop.set()
        response = waiting.result()
    assert (response.status, error_of(response)["code"]) == (503, "shutting_down")
