"""Links: every frame of docs/api.md, between a real gateway and a node that the test plays."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import openai
import pytest
from loguru import logger
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from gateway import keepalive, links
from gateway.nodes import MAX_ANSWER_BYTES
from gateway.pending import Pending
from messaging import envelope
from tests.unit.gateway_fakes import COMPLETION, DEADLINE_S, Bench, FakeLink, cancel, chunk, error, events, frame, lost, running, until

AT_ONCE_S = 0.2


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with running() as bench:
        yield bench


@pytest.fixture
def link(bench: Bench) -> Iterator[FakeLink]:
    with bench.link() as link:
        assert link.is_silent()  # it is known to the gateway
        yield link
    until(lambda: not bench.gateway.pending.links, "no link is left")
    assert bench.queue.published.empty()


@pytest.fixture
def other(bench: Bench) -> Iterator[FakeLink]:
    with bench.link() as link:
        assert link.is_silent()
        yield link


def asked(bench: Bench, stream: bool = True) -> tuple[Future[Any], envelope.Request]:
    return bench.ask(stream=stream), bench.queue.next()


def texts(response: Any) -> list[str]:
    """What a stream said; without its end."""
    said = events(response.data)
    assert said.pop() == "[DONE]"
    return [json.loads(event)["choices"][0]["delta"]["content"] for event in said]


class Requester:
    """One who streams, reads only what the test reads, and can hang up."""

    def __init__(self, bench: Bench, stream: bool = True) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(address(bench))
        body = b'{"model":"m","stream":%s,"messages":[{}]}' % str(stream).lower().encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        self.socket.sendall(head % len(body) + body)
        self.request = bench.queue.next()

    def read_until(self, what: bytes) -> None:
        found = b""
        while what not in found:
            piece = self.socket.recv(65536)
            assert piece, f"{what!r} did not come: {found[-200:]!r}"
            found += piece

    def hang_up(self) -> None:
        self.socket.close()


class RawNode:
    """A node that neither reads nor answers pings."""

    def __init__(self, bench: Bench, path: str = links.PATH) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(address(bench))
        lines = ["GET " + path + " HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade"]
        lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        assert self.socket.recv(4096).startswith(b"HTTP/1.1 101")

    def send(self, text: str) -> None:
        data = text.encode()
        size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
        self.socket.sendall(b"\x81" + size + bytes(4) + data)  # masked with zeros


def address(bench: Bench) -> tuple[str, int]:
    return "127.0.0.1", int(bench.url.rsplit(":", 1)[1])


@pytest.mark.parametrize(
    ("answer_url", "expected"),
    [("http://10.0.0.1:8081", "ws://10.0.0.1:8081/res/link"), ("https://http.example/x", "wss://http.example/x/res/link")],
)
def test_what_is_published_offers_a_link(answer_url: str, expected: str) -> None:
    with running() as bench:
        bench.gateway.answer_url = answer_url
        waiting, request = asked(bench, stream=False)
        assert request.metadata is not None
        assert request.metadata["workernode"] == {"link": expected, "v": 1}
        assert "Host" in request.metadata["headers"]
        assert envelope.link_of(request) == expected
        bench.post("/res", {"request_id": request.request_id, "data": COMPLETION})
        assert waiting.result().status == 200


def test_a_stream_is_begun_passed_on_and_taken(bench: Bench, link: FakeLink) -> None:
    waiting = bench.create(stream=True)
    request = bench.queue.next()
    assert link.begin(request) == "go"
    link.put(request, chunk("Pa"))
    stream = waiting.result()
    assert next(stream).choices[0].delta.content == "Pa"  # before the rest is sent
    link.put(request, chunk("ris"))
    assert next(stream).choices[0].delta.content == "ris"
    assert link.end(request) == "taken"
    assert list(stream) == []
    assert link.is_silent()  # who has its answer and leaves is no cancel


def test_a_whole_answer_is_one_frame_and_comes_back_as_it_was_sent(bench: Bench, link: FakeLink) -> None:
    waiting, request = asked(bench, stream=False)
    assert link.begin(request) == "go"
    link.socket.send(f'{{"request_id":"{request.request_id}","end":true,"data":{{"choices":[],  "id":"x"}}}}')
    assert link.read() == {"type": "taken", "request_id": request.request_id}
    answer = waiting.result()
    assert (answer.status, answer.data) == (200, b'{"choices":[],  "id":"x"}')
    assert link.is_silent()


def test_several_frames_may_come_in_one_text_and_so_do_the_replies(bench: Bench, link: FakeLink) -> None:
    """Each counts for itself, whatever is wrong with another."""
    asking = [asked(bench, stream=False) for _ in range(3)]
    begins = [f'{{"type":"begin","request_id":"{request.request_id}","attempt":1}}' for _, request in asking]
    ends = [frame(request, COMPLETION, end=True) for _, request in asking]
    link.socket.send("\n".join([*begins, "garbage", "", *ends]))
    said = [link.read()["type"] for _ in range(6)]
    assert said == ["go"] * 3 + ["taken"] * 3
    assert [waiting.result().status for waiting, _ in asking] == [200] * 3
    link.socket.send("\n".join(begins))
    assert len(str(link.socket.recv(20)).split("\n")) == 3, "what is told together goes together"


def test_a_whole_answer_to_a_stream_becomes_one_chunk(bench: Bench, link: FakeLink) -> None:
    waiting, request = asked(bench)
    assert link.begin(request) == "go"
    assert link.end(request, COMPLETION) == "taken"
    assert texts(waiting.result()) == ["Paris"]


def test_the_last_frame_of_a_stream_may_have_a_chunk(bench: Bench, link: FakeLink) -> None:
    waiting, request = asked(bench)
    assert link.begin(request) == "go"
    link.put(request, chunk("Pa"))
    link.socket.send(f'{{"request_id":"{request.request_id}","end":true,"data":{{"choices":  []}}}}')
    assert link.read()["type"] == "taken"
    assert events(waiting.result().data)[1:] == ['{"choices":  []}', "[DONE]"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("end", [True, False])
def test_an_error_has_its_status_and_is_taken(bench: Bench, link: FakeLink, stream: bool, end: bool) -> None:
    waiting, request = asked(bench, stream)
    assert link.begin(request) == "go"
    link.put(request, error("requests", "rate_limit_exceeded"), end)
    assert link.read() == {"type": "taken", "request_id": request.request_id}
    assert waiting.result().status == 429


def test_an_end_that_cannot_be_read_ends_the_request(bench: Bench, link: FakeLink) -> None:
    waiting, request = asked(bench)
    assert link.begin(request) == "go"
    link.socket.send(f'{{"request_id":"{request.request_id}","end":true,"data":{{"choices":[],"x":1e999999}}}}')
    assert link.read()["type"] == "taken"
    assert json.loads(waiting.result().data)["error"]["code"] == "bad_answer"


def test_pieces_for_one_who_wants_a_whole_are_a_bad_answer(bench: Bench, link: FakeLink) -> None:
    waiting, request = asked(bench, stream=False)
    assert link.begin(request) == "go"
    for text in "ab":
        link.put(request, chunk(text))
    assert link.end(request) == "taken"
    assert waiting.result().status == 502


def test_who_is_unknown_gone_or_answered_is_gone(bench: Bench, link: FakeLink) -> None:
    assert link.is_silent()  # it asks for one who was never there
    waiting, request = asked(bench, stream=False)
    assert link.end(request, COMPLETION) == "gone"  # not begun
    assert link.begin(request) == "go"
    assert link.end(request, COMPLETION) == "taken"
    assert waiting.result().status == 200
    assert link.end(request, COMPLETION) == "gone"
    assert link.begin(request, 2) == "gone"


def test_before_output_another_begin_takes_over(bench: Bench, link: FakeLink, other: FakeLink) -> None:
    waiting, request = asked(bench)
    assert link.begin(request) == "go"
    assert other.begin(request, 2) == "go"
    assert link.read() == lost(request)
    link.put(request, chunk("lost"))
    assert link.end(request) == "gone"
    other.put(request, chunk("fine"))
    assert other.end(request) == "taken"
    assert texts(waiting.result()) == ["fine"]
    assert link.is_silent()
    assert other.is_silent()


def test_after_output_another_begin_is_busy(bench: Bench, link: FakeLink, other: FakeLink) -> None:
    waiting, request = asked(bench)
    assert link.begin(request) == "go"
    link.put(request, chunk("a"))
    assert link.is_silent()
    assert other.begin(request, 2) == "busy"
    other.put(request, chunk("lost"))
    assert other.end(request) == "gone"
    assert link.begin(request, 2) == "busy"
    assert link.begin(request, 1) == "go"
    assert link.end(request, chunk("b")) == "taken"
    assert texts(waiting.result()) == ["a", "b"]


def test_another_attempt_on_the_same_link_cancels_nothing(bench: Bench, link: FakeLink) -> None:
    waiting, request = asked(bench)
    assert [link.begin(request, attempt) for attempt in (1, 2, 1)] == ["go"] * 3
    assert link.end(request, chunk("a")) == "taken"
    assert texts(waiting.result()) == ["a"]


def test_many_streams_share_one_link(bench: Bench, link: FakeLink) -> None:
    waiting = {i: bench.create(stream=True, user=str(i)) for i in range(8)}
    requests = {json.loads(bytes(request.data))["user"]: request for request in (bench.queue.next() for _ in waiting)}
    assert [link.begin(request) for request in requests.values()] == ["go"] * 8
    for part in ("a", "b"):
        for user, request in requests.items():
            link.put(request, chunk(part + user))
    assert [link.end(request) for request in requests.values()] == ["taken"] * 8
    for i, stream in waiting.items():
        assert [part.choices[0].delta.content for part in stream.result()] == [f"a{i}", f"b{i}"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("begun", [True, False])
def test_who_hangs_up_before_any_output_is_cancelled_at_once(
    bench: Bench, link: FakeLink, other: FakeLink, stream: bool, begun: bool
) -> None:
    requester = Requester(bench, stream)
    if begun:
        assert link.begin(requester.request) == "go"
    requester.hang_up()
    assert link.read(AT_ONCE_S) == cancel(requester.request)
    if begun:
        assert other.is_silent()
    else:
        assert other.read(AT_ONCE_S) == cancel(requester.request)
    assert link.begin(requester.request) == "gone"
    assert link.is_silent()


def test_who_hangs_up_in_mid_stream_is_cancelled_at_once(bench: Bench, link: FakeLink, other: FakeLink) -> None:
    requester = Requester(bench)
    assert link.begin(requester.request) == "go"
    link.put(requester.request, chunk("Pa"))
    requester.read_until(b"Pa")
    requester.hang_up()
    assert link.read(AT_ONCE_S) == cancel(requester.request)
    assert link.end(requester.request) == "gone"
    assert link.is_silent()
    assert other.is_silent()


def test_small_frames_do_not_wait_for_acknowledgements(bench: Bench, link: FakeLink) -> None:
    """Nagle's algorithm holds the second of two small writes back until the peer has acknowledged the first, 40 ms later."""
    since_s = time.monotonic()
    for _ in range(50):
        for _ in range(2):
            link.socket.send('{"type":"begin","request_id":"nobody","attempt":1}')
        assert [link.read()["type"] for _ in range(2)] == ["gone", "gone"]
    assert time.monotonic() - since_s < 1.0


@pytest.mark.parametrize("output", [True, False])
def test_a_timeout_is_a_cancel_at_once(output: bool) -> None:
    with running(timeout_s=0.3) as bench, bench.link() as link:
        requester = Requester(bench)
        assert link.begin(requester.request) == "go"
        if output:
            link.put(requester.request, chunk("Pa"))
        assert link.read(1.0) == cancel(requester.request)
        requester.read_until(b'"code":"timeout"')
        assert link.is_silent()


def test_who_does_not_read_is_dropped_and_holds_up_nobody() -> None:
    with running(buffer_limit_bytes=100_000) as bench, bench.link() as link:
        slow = Requester(bench)
        waiting, request = asked(bench)
        assert [link.begin(slow.request), link.begin(request)] == ["go", "go"]
        link.put(request, chunk("a"))
        deadline = time.monotonic() + 10
        while bench.gateway.pending.get(slow.request.request_id):
            assert time.monotonic() < deadline
            link.put(slow.request, chunk("x" * 50_000))
        assert link.read() == cancel(slow.request)
        assert link.end(request, chunk("b")) == "taken"
        assert texts(waiting.result()) == ["a", "b"]
        assert link.is_silent()


def test_a_link_that_is_lost_ends_what_has_output_at_once_and_frees_the_rest(bench: Bench, link: FakeLink) -> None:
    with bench.link() as lost:
        answered, fresh = Requester(bench), Requester(bench)
        assert [lost.begin(each.request) for each in (answered, fresh)] == ["go", "go"]
        lost.put(answered.request, chunk("Pa"))
        answered.read_until(b"Pa")
        since_s = time.monotonic()
        lost.kill()
        answered.read_until(b"0\r\n\r\n")
        assert time.monotonic() - since_s < AT_ONCE_S
        assert link.begin(answered.request, 2) == "gone"
        assert link.begin(fresh.request, 2) == "go"
        assert link.end(fresh.request, chunk("fine")) == "taken"
        fresh.read_until(b"[DONE]")


def test_openais_client_is_told_that_the_node_was_lost(bench: Bench) -> None:
    with bench.link() as link:
        waiting = bench.create(stream=True)
        request = bench.queue.next()
        assert link.begin(request) == "go"
        link.put(request, chunk("Pa"))
        stream = waiting.result()
        assert next(stream).choices[0].delta.content == "Pa"
    with pytest.raises(openai.APIError, match="node was lost") as raised:
        next(stream)
    assert (raised.value.type, raised.value.code) == ("server_error", "node_lost")


def test_a_failure_of_the_reader_ends_the_link(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with bench.link() as link:
        requester = Requester(bench)
        assert link.begin(requester.request) == "go"
        link.put(requester.request, chunk("Pa"))
        requester.read_until(b"Pa")
        monkeypatch.setattr(bench.gateway.pending, "begin", None)
        link.tell(requester.request)
        requester.read_until(b"node_lost")
        with pytest.raises(ConnectionClosed):
            link.read()


def test_a_node_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keepalive, "LINK_PING_INTERVAL_S", 0.1)
    monkeypatch.setattr(keepalive, "LINK_PING_TIMEOUT_S", 0.3)
    with running() as bench, bench.link() as alive:
        requester = Requester(bench)
        silent, elsewhere = RawNode(bench), RawNode(bench, "/res/ws")
        silent.send(json.dumps({"type": "begin", "request_id": requester.request.request_id, "attempt": 1}))
        for _ in range(20):  # frames are as good as pongs
            silent.send(frame(requester.request, chunk("Pa")))
            time.sleep(0.05)
        assert bench.gateway.pending.get(requester.request.request_id)
        requester.read_until(b"node_lost")
        elsewhere.socket.setblocking(False)
        with pytest.raises(BlockingIOError):  # neither closed nor pinged
            elsewhere.socket.recv(1)
        assert alive.is_silent()


def told_much(bench: Bench, frames: int) -> RawNode:
    """A node that has not read replies of 2 kB each, which are more than the kernel takes from 4 MB on."""
    node = RawNode(bench)
    until(lambda: bench.gateway.pending.links, "the link is known")
    begin = json.dumps({"type": "begin", "request_id": "x" * 2000, "attempt": 1})
    with contextlib.suppress(OSError):
        for _ in range(frames):
            node.send(begin)
    return node


def test_a_node_that_reads_nothing_loses_its_link(bench: Bench) -> None:
    told: list[str] = []
    sink = logger.add(told.append, level="WARNING", filter="gateway.links")
    node = told_much(bench, 30_000)
    until(lambda: not bench.gateway.pending.links, "the link is closed")
    logger.remove(sink)
    node.socket.close()
    assert ["10000 frames" in line for line in told] == [True]


def test_a_node_that_reads_may_be_told_any_number_at_once() -> None:
    sent: list[str] = []

    class Node:
        async def send_text(self, text: str) -> None:
            sent.append(text)

    async def run() -> None:
        link = links.NodeLink(Pending(), lambda: pytest.fail("the link is closed"), lambda text: False)
        writer = asyncio.create_task(link.write_to(Node()))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        for number in range(links.MAX_UNREAD_FRAMES * 2):
            link.cancel(str(number))
        while len(sent) < links.MAX_UNREAD_FRAMES * 2:
            await asyncio.sleep(0)
        writer.cancel()

    asyncio.run(run())


def test_a_node_that_falls_silent_with_much_unread_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keepalive, "LINK_PING_INTERVAL_S", 0.1)
    monkeypatch.setattr(keepalive, "LINK_PING_TIMEOUT_S", 0.3)
    with running() as bench:
        node = told_much(bench, 5000)
        until(lambda: not bench.gateway.pending.links, "the link is closed")
        node.socket.close()


def test_what_is_no_frame_is_ignored_and_told_once(bench: Bench, link: FakeLink) -> None:
    waiting, request = asked(bench)
    assert link.begin(request) == "go"
    told: list[str] = []
    sink = logger.add(told.append, level="DEBUG", filter="gateway.links")
    rubbish: list[str | bytes] = [frame(request, "x").encode(), b"\xff", "no json", "[]", "{}", '{"request_id":7}', '{"type":"begin"}']
    rubbish += ['{"type":"other","request_id":"x"}', '{"request_id":"x","type":7}', '{"type":"begin","request_id":"x","attempt":"1"}']
    rubbish += [f'{{"request_id":"{request.request_id}","data":' + "[" * 100_000, '{"request_id":"nobody"}']
    for message in rubbish:
        link.socket.send(message)
    assert link.end(request, chunk("fine")) == "taken"
    logger.remove(sink)
    assert len(told) == 1
    assert texts(waiting.result()) == ["fine"]


def test_members_that_are_not_known_are_ignored(bench: Bench, link: FakeLink) -> None:
    waiting, request = asked(bench)
    link.socket.send(json.dumps({"type": "begin", "request_id": request.request_id, "attempt": 1, "since": {}}))
    assert link.read()["type"] == "go"
    link.socket.send(json.dumps({"request_id": request.request_id, "end": True, "data": chunk("a"), "since": []}))
    assert link.read()["type"] == "taken"
    assert texts(waiting.result()) == ["a"]


def test_a_frame_that_is_too_big_closes_the_link(bench: Bench) -> None:
    with bench.link() as link:
        requester = Requester(bench)
        assert link.begin(requester.request) == "go"
        link.put(requester.request, chunk("Pa"))
        with contextlib.suppress(ConnectionClosed):
            link.socket.send("x" * (MAX_ANSWER_BYTES + 1))
        requester.read_until(b"node_lost")
        with pytest.raises(ConnectionClosed):
            link.read()


def test_before_output_a_post_takes_over(bench: Bench, link: FakeLink) -> None:
    waiting, request = asked(bench)
    assert link.begin(request) == "go"
    assert bench.answer(request, COMPLETION).status == 200
    assert link.read() == lost(request)
    assert texts(waiting.result()) == ["Paris"]
    assert link.is_silent()


def test_before_output_a_frame_to_the_endpoint_takes_over(bench: Bench, link: FakeLink) -> None:
    with bench.socket() as node:
        waiting, request = asked(bench)
        assert link.begin(request) == "go"
        node.send(frame(request, chunk("a")))
        assert link.read() == lost(request)
        assert link.begin(request, 2) == "busy"
        link.put(request, chunk("lost"))
        assert link.end(request) == "gone"
        node.send(frame(request, chunk("b"), end=True))
        assert texts(waiting.result()) == ["a", "b"]


def test_after_output_on_a_link_the_endpoint_is_for_nobody(bench: Bench, link: FakeLink) -> None:
    with bench.socket() as node:
        waiting, request = asked(bench)
        assert link.begin(request) == "go"
        link.put(request, chunk("a"))
        assert link.is_silent()
        assert bench.answer(request, COMPLETION).status == 404
        node.send(frame(request, chunk("lost"), end=True))
        assert node.ping().wait(10)
        assert link.end(request, chunk("b")) == "taken"
        assert texts(waiting.result()) == ["a", "b"]


def test_a_node_that_knows_no_links_answers_beside_one_that_does(bench: Bench, link: FakeLink) -> None:
    with bench.socket() as node:
        waiting, request = asked(bench)
        node.send(frame(request, chunk("a")))
        node.send(frame(request, end=True))
        assert texts(waiting.result()) == ["a"]
        whole, asked_whole = asked(bench, stream=False)
        assert bench.answer(asked_whole, COMPLETION).status == 200
        assert whole.result().status == 200
        assert link.is_silent()


def test_one_link_carries_a_thousand_requests(bench: Bench, link: FakeLink) -> None:
    """A hundred at a time, as there is a thread for each requester here."""
    for _ in range(10):
        waiting = [bench.ask(stream=True) for _ in range(100)]
        for _ in waiting:
            link.tell(bench.queue.next())
            reply = link.read()
            while reply["type"] != "go":
                reply = link.read()
            for fields in ({"end": False, "data": chunk("a")}, {"end": True}):
                link.socket.send(json.dumps({"request_id": reply["request_id"]} | fields))
        assert {response.result().status for response in waiting} == {200}


def test_a_thousand_wait_on_one_link_at_once() -> None:
    with running(timeout_s=60.0) as bench, bench.link() as link:
        requesters = [Requester(bench) for _ in range(1000)]
        for each in requesters:
            link.tell(each.request)
        assert {link.read()["type"] for _ in requesters} == {"go"}
        assert len(bench.gateway.pending) == 1000
        for part in "abc":
            for each in requesters:
                link.put(each.request, chunk(part))
        for each in requesters:
            link.put(each.request, end=True)
        assert {link.read()["type"] for _ in requesters} == {"taken"}
        for each in requesters:
            each.read_until(b"[DONE]")
            each.hang_up()


def test_links_are_served_while_the_gateway_drains_and_then_closed() -> None:
    with running(drain_timeout_s=10) as bench, bench.link() as link:
        waiting, request = asked(bench)
        bench.stop.set()
        until(lambda: bench.gateway.draining, "draining")
        with bench.link() as late:
            assert late.begin(request) == "go"
            assert link.begin(request, 2) == "go"
            assert late.read() == lost(request)
        assert link.end(request, chunk("a")) == "taken"
        with pytest.raises(ConnectionClosed):
            link.read()
        assert link.socket.close_code == 1012
        assert texts(waiting.result()) == ["a"]


def test_what_a_shutdown_leaves_unanswered_is_cancelled() -> None:
    with running(drain_timeout_s=0.1) as bench, bench.link() as link:
        (streaming, request), (waiting, unbegun) = asked(bench), asked(bench, stream=False)
        assert link.begin(request) == "go"
        link.put(request, chunk("a"))
        assert link.is_silent()
        bench.stop.set()
        assert [link.read(), link.read()] == [cancel(request), cancel(unbegun)]
        assert json.loads(events(streaming.result().data)[-1])["error"]["code"] == "shutting_down"
        assert waiting.result().status == 503


def test_a_path_beside_it_is_no_link(bench: Bench) -> None:
    with pytest.raises(Exception, match="403"):
        connect(bench.gateway.link + "s")
