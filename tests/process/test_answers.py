"""The parts of a delivery that need another clock or another process: full buffers, quiet streams, rested sockets, late answers."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from answers import pool as pools
from answers import websocket
from answers.address import Address
from answers.delivery import Couriers, StreamDelivery, WholeDelivery
from answers.dial import Dialer
from answers.endpoint import NotDelivered, Refused, RequesterGone, http_url, websocket_url
from answers.pool import SocketPool
from answers.post import Poster
from answers.run import Run
from answers.websocket import FrameSocket
from backends import late
from backends.late import LateDeliveries
from ipc.messages import Outcome
from tests.real.processes import wait_until
from tests.real.requester import Requester


@pytest.fixture
def requester() -> Iterator[Requester]:
    with Requester() as requester:
        yield requester


def opened(requester: Requester) -> FrameSocket:
    return FrameSocket(requester.websocket_url, Dialer())


def address(requester: Requester, *, stream: bool, ttl_s: float = 60.0) -> Address:
    now_s = time.monotonic()
    return Address("an-id", stream, requester.websocket_url if stream else requester.http_url, now_s, now_s + ttl_s, 1)


def run() -> Run:
    return Run(1, "an-id")


FRAME = b'{"request_id":"an-id","end":false,"data":{}}'


def test_a_write_has_a_deadline(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "WRITE_TIMEOUT_S", 0.5)
    requester.stops_reading_after = 0
    stuck, began_s = opened(requester), time.monotonic()
    with pytest.raises(TimeoutError):
        for _ in range(100):  # some megabytes fit into the buffers
            stuck.send(b'"' + b"x" * 1_000_000 + b'"')
    assert time.monotonic() - began_s < 10
    stuck.abandon()


def test_a_stuck_stream_ends_as_gone(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "WRITE_TIMEOUT_S", 0.5)
    requester.stops_reading_after = 1
    way = StreamDelivery(address(requester, stream=True), Couriers(1, None), run())
    with pytest.raises(RequesterGone):
        for _ in range(100):
            way.chunk(b'"' + b"x" * 1_000_000 + b'"')
    way.abandon()
    wait_until(lambda: requester.open_connections == 0, within_s=5, what="closed socket")


def test_a_process_that_was_stopped_reads_its_pongs_before_it_judges(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner's thread may go on first, and hold the socket while the other thread looks."""
    used, gone = opened(requester), list[str]()
    used.ping()
    wait_until(used._has_come, within_s=10, what="the pong")
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 60)
    with used._lock:
        SocketPool._look_at(used, gone.append)
    SocketPool._look_at(used, gone.append)
    assert not gone and used.silent_for_s() <= 0
    used.abandon()


def test_a_pong_that_came_in_time_counts_though_it_is_read_late(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    used = opened(requester)
    used.ping()
    wait_until(used._has_come, within_s=10, what="the pong")
    with used._lock:
        used._read(time.monotonic() - 1)
        with pytest.raises(TimeoutError):
            used._read(time.monotonic() - 1)
    used.abandon()


def test_a_quiet_stream_answers_pings(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may think for longer than a server waits for its pong."""
    monkeypatch.setattr(pools, "LOOK_EACH_S", 0.05)
    requester.pings = True
    pool = SocketPool(Dialer())
    lent = pool.borrow(requester.websocket_url)
    lent.send(FRAME)
    wait_until(lambda: requester.pongs_received == 1, within_s=5, what="pong")
    lent.send(FRAME)
    lent.confirm()
    pool.abandon(lent)


def test_a_rested_socket_is_taken_again_unless_it_is_stale(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SocketPool(Dialer())
    first = pool.borrow(requester.websocket_url)
    pool.give_back(requester.websocket_url, first)
    assert pool.borrow(requester.http_url.replace("/res", "/res/ws")) is first
    pool.give_back(requester.websocket_url, first)
    monkeypatch.setattr(pools, "IDLE_KEPT_S", -1.0)
    assert pool.borrow(requester.websocket_url) is not first


def test_nobodys_sockets_are_closed(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "LOOK_EACH_S", 0.05)
    monkeypatch.setattr(pools, "IDLE_KEPT_S", 0.2)
    pool = SocketPool(Dialer())
    pool.give_back(requester.websocket_url, pool.borrow(requester.websocket_url))
    wait_until(lambda: requester.sockets == 1 and requester.open_connections == 0, within_s=5, what="closed socket")


def test_a_socket_that_was_closed_meanwhile_is_not_taken(requester: Requester) -> None:
    pool = SocketPool(Dialer())
    first = pool.borrow(requester.websocket_url)
    pool.give_back(requester.websocket_url, first)
    requester.stop()
    with pytest.raises(NotDelivered):
        wait_until(lambda: pool.borrow(requester.websocket_url) is not first, within_s=2, what="refusal")
    requester.start()
    second = pool.borrow(requester.websocket_url)
    second.send(FRAME)
    second.confirm()
    assert second is not first and len(requester.frames("an-id")) == 1


def test_no_websocket_there(requester: Requester) -> None:
    requester.hangs = True
    with pytest.raises(NotDelivered):
        FrameSocket("ws://127.0.0.1:9/res/ws", Dialer())
    with pytest.raises(NotDelivered):
        FrameSocket("not an address", Dialer())


def test_addresses() -> None:
    assert http_url("ws://h:1/res") == "http://h:1/res" and http_url("https://h/res?a=b") == "https://h/res?a=b"
    assert websocket_url("http://h:1/res/ws") == "ws://h:1/res/ws" and websocket_url("https://h/x") == "wss://h/x"


def test_a_hanging_post_ends(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("answers.post.TAKEN_WITHIN_S", 0.3)
    requester.hangs = True
    way = WholeDelivery(address(requester, stream=False), Couriers(1, None), run())
    way.whole(b"{}")
    with pytest.raises(NotDelivered):
        way.finish()
    requester.hangs = False
    way.finish()
    assert len(requester.posts("an-id")) == 1


# late ones


class Outcomes(list[Outcome]):
    def wait(self, count: int) -> list[Outcome]:
        wait_until(lambda: len(self) == count, within_s=10, what=f"{count} outcomes", every_s=0.01)
        return self


def add(deliveries: LateDeliveries, way: Any, ttl_s: float, outcomes: Outcomes, number: int = 1) -> None:
    deliveries.add(way, time.monotonic() + ttl_s, "refused", number, "answered", None, outcomes.append)


def test_late_streams_leave_nothing_counted(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is limited; what was delivered must not count for ever."""
    monkeypatch.setattr(late, "MAX_KEPT_BYTES", 3000)
    monkeypatch.setattr(late, "FIRST_PAUSE_S", 0.05)
    deliveries, couriers = LateDeliveries(), Couriers(1, None)
    for _ in range(5):
        requester.stop()
        way, outcomes = StreamDelivery(address(requester, stream=True), couriers, run()), Outcomes()
        way.chunk(b'"' + b"x" * 2000 + b'"')
        with pytest.raises(NotDelivered):
            way.finish()
        add(deliveries, way, 10, outcomes)
        requester.start()
        assert outcomes.wait(1)[0].end == "answered"


def test_too_much_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch, requester: Requester) -> None:
    monkeypatch.setattr(late, "MAX_KEPT_BYTES", 10)
    way, outcomes = WholeDelivery(address(requester, stream=False), Couriers(1, None), run()), Outcomes()
    way.whole(b'"0123456789"')
    add(LateDeliveries(), way, 60, outcomes)
    assert (outcomes[0].end, outcomes[0].answer) == ("undeliverable", b'"0123456789"')


def test_the_last_try_is_at_the_deadline(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    requester.stop()
    way, outcomes, began_s = WholeDelivery(address(requester, stream=False), Couriers(1, None), run()), Outcomes(), time.monotonic()
    way.whole(b"{}")
    add(LateDeliveries(), way, 0.7, outcomes)  # the second pause alone is longer
    assert outcomes.wait(1)[0].end == "undeliverable" and 0.7 <= time.monotonic() - began_s < 5


class Buggy:
    answer = b"{}"

    def finish(self) -> None:
        raise ZeroDivisionError


def test_a_bug_costs_one_delivery_only(requester: Requester) -> None:
    deliveries, outcomes = LateDeliveries(), Outcomes()
    for number in range(2 * late.THREADS):
        add(deliveries, Buggy(), 0.0, outcomes, number)
    assert {outcome.end for outcome in outcomes.wait(2 * late.THREADS)} == {"undeliverable"}
    way = WholeDelivery(address(requester, stream=False), Couriers(1, None), run())
    way.whole(b"{}")
    add(deliveries, way, 0.1, outcomes)
    assert outcomes.wait(2 * late.THREADS + 1)[-1].end == "answered"


def test_sends_and_looks_do_not_mix(requester: Requester) -> None:
    """Frames of one thread, pongs of another: the protocol's state is one."""
    requester.pings = True
    shared, ended = opened(requester), threading.Event()

    def look() -> None:
        while not ended.is_set():
            shared.look()

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(500):
            shared.send(FRAME)
        shared.confirm()
    finally:
        ended.set()
        looking.join(5)
    assert len(requester.frames("an-id")) == 500
    shared.abandon()


# endpoints that are slow on purpose, or refuse


@contextlib.contextmanager
def saying(*pieces: bytes, each_s: float = 0.05) -> Iterator[tuple[str, list[int]]]:
    """A service that answers whatever comes with these bytes, slowly; its address, and how many bytes each of its
    connections took before the other side closed."""
    ended, sent = threading.Event(), list[int]()

    def serve() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                threading.Thread(target=drip, args=(connection,), daemon=True).start()

    def drip(connection: socket.socket) -> None:
        sent.append(0)
        number = len(sent) - 1
        with connection, contextlib.suppress(OSError):
            while connection.recv(65536):
                for piece in pieces:
                    connection.sendall(piece)
                    sent[number] += len(piece)
                    ended.wait(each_s)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}/res", sent
        ended.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


DRIPPED = [b"x"] * 400  # 20 s


@pytest.mark.parametrize(
    "pieces", [[b"HTTP/1.1 200 OK\r\nX-Long: ", *DRIPPED], [b"HTTP/1.1 200 ", *DRIPPED], [b"HTTP/1.1 100 Continue\r\n\r\n"] * 400],
    ids=["headers", "status line", "interim answers"],
)  # fmt: skip
def test_an_answer_that_drips_has_a_deadline(monkeypatch: pytest.MonkeyPatch, pieces: list[bytes]) -> None:
    monkeypatch.setattr("answers.post.TAKEN_WITHIN_S", 0.5)
    began_s = time.monotonic()
    with saying(*pieces) as (endpoint, _), pytest.raises(NotDelivered):
        Poster(1, Dialer()).post(f"http://{endpoint}", b"{}", early_until_s=0)
    assert 0.4 < time.monotonic() - began_s < 3


@pytest.mark.parametrize(
    "head", [b"Content-Length: 400\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n1;", b"\r\n"],
    ids=["length", "chunk's head", "no length"],
)  # fmt: skip
def test_a_body_that_drips_changes_nothing_about_its_status(monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    monkeypatch.setattr("answers.post.TAKEN_WITHIN_S", 0.5)
    began_s = time.monotonic()
    with saying(b"HTTP/1.1 200 OK\r\n" + head, *DRIPPED) as (endpoint, _):
        Poster(1, Dialer()).post(f"http://{endpoint}", b"{}", early_until_s=0)
    assert time.monotonic() - began_s < 3


def test_an_endless_body_is_not_read() -> None:
    endless = [b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n", *[b"x" * 10_000] * 10_000]
    with saying(*endless, each_s=0) as (endpoint, sent):
        Poster(1, Dialer()).post(f"http://{endpoint}", b"{}", early_until_s=0)
        wait_until(lambda: sent[0] > 0, within_s=5, what="an answer")
        Poster(1, Dialer()).post(f"http://{endpoint}", b"{}", early_until_s=0)
        assert sent[0] < 20_000_000  # what buffers of the kernel hold


def test_connections_are_kept_from_answer_to_answer(requester: Requester) -> None:
    poster = Poster(1, Dialer())
    for _ in range(5):
        poster.post(requester.http_url, b'{"request_id": "r", "data": {}}', early_until_s=0)
    assert (len(requester.posts("r")), requester.connections) == (5, 1)


@pytest.mark.parametrize("status", [400, 401, 405, 413])
def test_a_refusal_is_final(requester: Requester, status: int) -> None:
    requester.post_status = status
    with pytest.raises(Refused, match=str(status)):
        Poster(1, Dialer()).post(requester.http_url, b'{"request_id": "r", "data": {}}', early_until_s=0)


@pytest.mark.parametrize("status", [302, 408, 425, 429, 500, 503])
def test_what_may_pass_is_not(requester: Requester, status: int) -> None:
    requester.post_status = status
    with pytest.raises(NotDelivered, match=str(status)) as raised:
        Poster(1, Dialer()).post(requester.http_url, b'{"request_id": "r", "data": {}}', early_until_s=0)
    assert not isinstance(raised.value, Refused)


@pytest.mark.parametrize(("status", "final"), [(400, True), (403, True), (404, False), (429, False), (503, False)])
def test_a_handshake_may_be_refused_for_good_too(status: int, final: bool) -> None:
    with saying(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status) as (endpoint, _), pytest.raises(NotDelivered) as raised:
        FrameSocket(f"ws://{endpoint}", Dialer())
    assert isinstance(raised.value, Refused) is final and str(status) in str(raised.value)


def test_a_late_answer_that_is_refused_waits_no_longer(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late, "FIRST_PAUSE_S", 0.05)
    requester.post_status = 413
    way, outcomes = WholeDelivery(address(requester, stream=False), Couriers(1, None), run()), Outcomes()
    way.whole(b"{}")
    add(LateDeliveries(), way, 60, outcomes)
    assert outcomes.wait(1)[0].end == "undeliverable" and requester.post_tries == 1
    assert "413" in (outcomes[0].error or {})["message"]
