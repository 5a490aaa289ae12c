"""The gateway's bounds: connections that ask nothing, heads that never end, bodies, and more requests than it takes."""

from __future__ import annotations

import json
import resource
import socket
import time
from collections.abc import Iterator

import pytest

from gateway import connections, server
from gateway.body import Room
from tests.unit.gateway_fakes import COMPLETION, DEADLINE_S, Bench, running, until

ASK = b'{"model":"m","messages":[{}]}'


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with running(head_within_s=1.0) as bench:
        yield bench


def connect(bench: Bench) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(bench.url.rsplit(":", 1)[1])), timeout=DEADLINE_S)


def read_to_end(connection: socket.socket) -> bytes:
    """Until the gateway closes it."""
    said = b""
    try:
        while piece := connection.recv(65536):
            said += piece
    except ConnectionResetError:
        pass
    return said


def status_of(said: bytes) -> int:
    head, _, body = said.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"} and b"content-type: application/json" in head.lower()
    return int(head.split()[1])


@pytest.mark.parametrize("begun", [b"", b"POST /v1/chat", b"GET /health HTTP/1.1\r\nHost: x\r\n"])
def test_a_request_that_does_not_come_is_not_waited_for(bench: Bench, begun: bytes) -> None:
    with connect(bench) as slow:
        slow.sendall(begun)
        assert status_of(read_to_end(slow)) == 408


def test_a_head_that_drips_has_the_same_time(bench: Bench) -> None:
    with connect(bench) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\n")
        slow.settimeout(0.05)
        said, give_up_s = b"", time.monotonic() + DEADLINE_S
        while not said and time.monotonic() < give_up_s:
            try:
                slow.sendall(b"X")
                said = slow.recv(65536)
            except TimeoutError:
                continue
        assert said.startswith(b"HTTP/1.1 408 ")


def test_so_has_the_second_of_a_connection_and_the_rest_of_a_refused_body(bench: Bench) -> None:
    for first, rest in [
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /hea"),
        (b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", b"x"),
    ]:
        with connect(bench) as slow:
            slow.sendall(first)
            assert slow.recv(65536).startswith(b"HTTP/1.1 ")
            slow.sendall(rest)
            read_to_end(slow)


def test_who_waits_for_an_answer_has_all_the_time(bench: Bench) -> None:
    waiting = bench.ask()
    request = bench.queue.next()
    with connect(bench) as slow:  # as long as such a one is given
        read_to_end(slow)
    assert bench.answer(request, COMPLETION).status == 200 and waiting.result().status == 200


def test_a_link_is_no_slow_request(bench: Bench) -> None:
    with bench.link() as link, connect(bench) as slow:
        read_to_end(slow)
        assert link.is_silent()


@pytest.mark.parametrize("head", [b"X-Long: " + b"x" * 100_000, b"X-Many: y\r\n" * 10_000, b"GET /" + b"x" * 100_000])
def test_a_head_has_an_end(bench: Bench, head: bytes) -> None:
    with connect(bench) as greedy:
        start = b"" if head.startswith(b"GET") else b"GET /health HTTP/1.1\r\n"
        greedy.sendall(start + head)
        assert status_of(read_to_end(greedy)) in (400, 431)


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"GET / HTTP/x.y\r\n\r\n", b"\x00" * 100 + b"\r\n\r\n",
     b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n",
     b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnot hexadecimal\r\n"],
)  # fmt: skip
def test_what_is_no_http_gets_openais_error(bench: Bench, garbage: bytes) -> None:
    with connect(bench) as strange:
        strange.sendall(garbage)
        assert status_of(read_to_end(strange)) in (400, 408)


def test_connections_over_the_limit_cost_those_that_ask_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "connection_limit", lambda _: 20)
    with running(head_within_s=600.0) as bench:
        waiting = bench.ask()
        request = bench.queue.next()
        silent = [connect(bench) for _ in range(100)]
        assert bench.http.request("GET", f"{bench.url}/health").status == 200
        assert bench.answer(request, COMPLETION).status == 200 and waiting.result().status == 200
        assert read_to_end(silent[0]) == b""  # the first to come was the first to go
        for connection in silent:
            connection.close()


def test_where_all_are_at_work_a_new_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "connection_limit", lambda _: 3)
    with running() as bench:
        asking = [connect(bench) for _ in range(3)]
        for client in asking:
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(ASK), ASK))
        until(lambda: len(bench.gateway.pending) == 3, "three requests wait")
        with connect(bench) as fourth:
            said = read_to_end(fourth)
        assert status_of(said) == 503 and b"retry-after: 1" in said.lower()
        for client in asking:
            client.close()


def test_more_requests_than_it_takes_are_told_to_come_again() -> None:
    with running(max_pending=2) as bench:
        waiting = [bench.ask(), bench.ask()]
        asked = [bench.queue.next(), bench.queue.next()]
        response = bench.ask().result()
        assert (response.status, response.headers["retry-after"]) == (503, "5")
        assert json.loads(response.data)["error"]["code"] == "server_is_overloaded"
        for request in asked:
            bench.answer(request, COMPLETION)
        assert [answer.result().status for answer in waiting] == [200, 200]
        again = bench.ask()
        bench.answer(bench.queue.next(), COMPLETION)
        assert again.result().status == 200


def test_a_hopeless_wait_is_refused_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.gateway.pending, "wait_s", lambda model: bench.gateway.timeout_s + 12.3)
    response = bench.ask().result()
    assert (response.status, response.headers["retry-after"]) == (503, "13")
    assert bench.queue.published.empty()


def test_bodies_have_a_bound_together() -> None:
    with running(bodies=Room(100_000)) as bench:
        with connect(bench) as slow:
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n" + b"x" * 80_000)
            until(lambda: bench.gateway.bodies.left_bytes < 30_000, "the slow body is being read")
            response = bench.ask(x="y" * 50_000).result()
            assert (response.status, response.headers["retry-after"]) == (503, "1")
        until(lambda: bench.gateway.bodies.left_bytes == 100_000, "room")
        waiting = bench.ask(x="y" * 50_000)
        bench.answer(bench.queue.next(), COMPLETION)
        assert waiting.result().status == 200


def test_the_limit_goes_as_far_as_files_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    assert connections.connection_limit(4096) == 1024 - 128
    assert connections.connection_limit(10) == 1024 - 128
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1_000_000, 1_000_000))
    assert connections.connection_limit(4096) == 2 * 4096 + 1024
