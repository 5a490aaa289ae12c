"""Streams: frames from a node's socket to a requester's server-sent events."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from messaging import envelope
from tests.unit.gateway_fakes import COMPLETION, Bench, chunk, error, events, frame, running, until


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with running() as bench:
        yield bench


def texts(stream: Any) -> list[str]:
    return [part.choices[0].delta.content for part in stream]


def requester(bench: Bench) -> tuple[socket.socket, envelope.Request]:
    """A streaming requester that reads only what the test reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(10)
    client.connect(("127.0.0.1", int(bench.url.rsplit(":", 1)[1])))
    body = b'{"model":"m","stream":true,"messages":[{}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    client.sendall(head % len(body) + body)
    return client, bench.queue.next()


def read_to_the_end(client: socket.socket) -> bytes:
    with client, client.makefile("rb") as reader:
        return reader.read()


def test_openais_client_gets_each_chunk_as_it_comes(bench: Bench) -> None:
    with bench.socket() as node:
        waiting = bench.create(stream=True)
        request = bench.queue.next()
        assert request.stream is True
        assert request.endpoint == f"{bench.url.replace('http', 'ws')}/res/ws"
        node.send(frame(request, chunk("Pa")))
        stream = waiting.result()
        assert next(stream).choices[0].delta.content == "Pa"  # before the rest is sent
        node.send(frame(request, chunk("ris")))
        assert next(stream).choices[0].delta.content == "ris"
        node.send(frame(request, end=True))
        assert list(stream) == []


def test_the_events_are_exact(bench: Bench) -> None:
    with bench.socket() as node:
        waiting = bench.ask(stream=True)
        request = bench.queue.next()
        for rest in ('"end":false,"data":{"a": [1,\n 2]}', '"end":true,"data":{"b": "\u00e9\\n"}'):
            node.send(f'{{"request_id":"{request.request_id}",{rest}}}')
        response = waiting.result()
    assert response.data == b'data: {"a":[1,2]}\n\ndata: {"b": "\xc3\xa9\\n"}\n\ndata: [DONE]\n\n'
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-request-id"] == request.request_id


def test_a_stream_without_content_still_ends(bench: Bench) -> None:
    with bench.socket() as node:
        waiting = bench.ask(stream=True)
        node.send(frame(bench.queue.next(), end=True))
        assert waiting.result().data == b"data: [DONE]\n\n"


def test_an_error_as_the_first_frame_becomes_its_status(bench: Bench) -> None:
    with bench.socket() as node:
        waiting = bench.create(stream=True)
        node.send(frame(bench.queue.next(), error("requests", "rate_limit_exceeded"), end=True))
        with pytest.raises(openai.RateLimitError):
            waiting.result()


def test_a_later_error_ends_the_stream_and_is_raised(bench: Bench) -> None:
    with bench.socket() as node:
        waiting = bench.create(stream=True)
        request = bench.queue.next()
        node.send(frame(request, chunk("Pa")))
        stream = waiting.result()
        assert next(stream).choices[0].delta.content == "Pa"
        node.send(frame(request, error("server_error"), end=True))
        with pytest.raises(openai.APIError, match="no such luck"):
            next(stream)


def test_an_error_without_end_ends_too_and_no_done_follows(bench: Bench) -> None:
    with bench.socket() as node:
        waiting = bench.ask(stream=True)
        request = bench.queue.next()
        node.send(frame(request, chunk("Pa")))
        node.send(frame(request, error("server_error")))
        last = events(waiting.result().data)[-1]
    assert json.loads(last) == error("server_error")


def test_many_streams_share_one_socket(bench: Bench) -> None:
    with bench.socket() as node:
        waiting = {i: bench.create(stream=True, user=str(i)) for i in range(8)}
        requests = {json.loads(bytes(request.data))["user"]: request for request in (bench.queue.next() for _ in waiting)}
        for part in ("a", "b"):
            for user, request in requests.items():
                node.send(frame(request, chunk(part + user)))
        for request in requests.values():
            node.send(frame(request, end=True))
        for i, stream in waiting.items():
            assert texts(stream.result()) == [f"a{i}", f"b{i}"]


def test_rubbish_on_the_socket_is_dropped_in_silence(bench: Bench) -> None:
    with bench.socket() as node:
        waiting = bench.create(stream=True)
        request = bench.queue.next()
        broken = frame(request, "x").encode()
        rubbish: list[str | bytes] = [broken, "no json", "[]", '{"request_id":7}', '{"request_id":"gone","end":true}', b"\xff"]
        rubbish.append(f'{{"request_id":"{request.request_id}","data":' + "[" * 100_000)
        for message in rubbish:
            node.send(message)
        node.send(frame(request, chunk("fine"), end=True))
        assert texts(waiting.result()) == ["fine"]
        assert node.ping().wait(10)


def test_a_whole_answer_to_a_stream_becomes_one_chunk(bench: Bench) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    choice = {"index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant", "content": "Paris", "tool_calls": [call]}}
    waiting = bench.create(stream=True)
    assert bench.answer(bench.queue.next(), COMPLETION | {"choices": [choice]}).status == 200
    (only,) = list(waiting.result())
    assert only.object == "chat.completion.chunk"
    assert only.choices[0].delta.content == "Paris"
    assert only.choices[0].delta.tool_calls[0].index == 0
    assert only.choices[0].finish_reason == "tool_calls"
    assert only.usage.total_tokens == 2


def test_silence_is_filled_with_comments_and_ends_in_a_timeout() -> None:
    with running(keep_alive_s=0.3, timeout_s=1.0) as bench, bench.socket() as node:
        waiting = bench.ask(stream=True)
        node.send(frame(bench.queue.next(), chunk("Pa")))
        raw = waiting.result().data
        assert raw.count(b": keep-alive\n\n") == 3
        assert json.loads(events(raw)[-1])["error"]["code"] == "timeout"
        until(lambda: len(bench.gateway.pending) == 0, "nothing is pending")


def test_no_first_frame_is_a_504() -> None:
    with running(timeout_s=0.1) as bench:
        assert bench.ask(stream=True).result().status == 504


def test_a_streaming_requester_that_hangs_up_is_forgotten_at_once(bench: Bench) -> None:
    client, request = requester(bench)
    with bench.socket() as node:
        node.send(frame(request, chunk("Pa")))
        assert client.recv(10)
        client.close()
        until(lambda: len(bench.gateway.pending) == 0, "the requester is forgotten")
        node.send(frame(request, chunk("ris")))
        assert node.ping().wait(10)


def test_one_who_does_not_read_is_dropped_and_holds_up_nobody() -> None:
    with running(buffer_limit_bytes=100_000) as bench, bench.socket() as node:
        slow, slow_request = requester(bench)
        waiting = bench.create(stream=True)
        request = bench.queue.next()
        big = frame(slow_request, chunk("x" * 50_000))
        node.send(frame(request, chunk("a")))
        deadline = time.monotonic() + 10
        while bench.gateway.pending.get(slow_request.request_id):
            assert time.monotonic() < deadline
            node.send(big)
        node.send(frame(request, chunk("b"), end=True))
        assert texts(waiting.result()) == ["a", "b"]
        assert not read_to_the_end(slow).endswith(b"0\r\n\r\n")  # so that no HTTP client takes it for whole


def test_a_slow_reader_within_its_bounds_gets_everything() -> None:
    with running() as bench, bench.socket() as node:
        client, request = requester(bench)
        for _ in range(20):
            node.send(frame(request, chunk("x" * 50_000)))
        node.send(frame(request, end=True))
        assert node.ping().wait(10)  # all taken, though nothing was read
        raw = read_to_the_end(client)
        assert raw.endswith(b"0\r\n\r\n")
        assert raw.count(b"x" * 50_000) == 20
