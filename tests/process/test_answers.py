"""The parts of a delivery that need another clock or another process: full buffers, quiet streams, rested sockets, late answers."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

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
from answers.websocket import WebSocket, open_socket
from backends import late
from backends.late import LateDeliveries
from tests.real.loop import on_loop, until
from tests.real.requester import Requester


@pytest.fixture
def requester() -> Iterator[Requester]:
    with Requester() as requester:
        yield requester


async def opened(requester: Requester) -> WebSocket:
    return await open_socket(requester.websocket_url, Dialer())


def address(requester: Requester, *, stream: bool, ttl_s: float = 60.0) -> Address:
    now_s = time.monotonic()
    return Address("an-id", stream, requester.websocket_url if stream else requester.http_url, now_s, now_s + ttl_s, 1)


def run() -> Run:
    return Run(1, "an-id")


FRAME = b'{"request_id":"an-id","end":false,"data":{}}'


async def send_much(send: Callable[[bytes], Awaitable[None]]) -> None:
    for _ in range(100):  # some megabytes fit into the buffers
        await send(b'"' + b"x" * 1_000_000 + b'"')
        await asyncio.sleep(0)  # a turn of the loop, in which it goes out


@on_loop
async def test_a_write_has_a_deadline(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "WRITE_TIMEOUT_S", 0.5)
    requester.stops_reading_after = 0
    stuck, began_s = await opened(requester), time.monotonic()
    with pytest.raises(TimeoutError):
        await send_much(stuck.send)
    assert time.monotonic() - began_s < 10 and not stuck.is_open


@on_loop
async def test_a_write_that_is_stuck_is_so_for_all(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds out first tells all others that wait."""
    monkeypatch.setattr(websocket, "WRITE_TIMEOUT_S", 0.5)
    requester.stops_reading_after = 0
    stuck = await opened(requester)
    first = asyncio.create_task(send_much(stuck.send))
    await until(lambda: stuck.is_full, what="full buffers")
    with pytest.raises(OSError):
        await stuck.send(FRAME)
    with pytest.raises(OSError):
        await first
    with pytest.raises(ConnectionResetError):
        stuck.put(FRAME)


@on_loop
async def test_a_stuck_stream_ends_as_gone(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "WRITE_TIMEOUT_S", 0.5)
    requester.stops_reading_after = 1
    way = StreamDelivery(address(requester, stream=True), Couriers(1, None), run())
    with pytest.raises(RequesterGone):
        await send_much(way.chunk)
    way.abandon()
    await until(lambda: requester.open_connections == 0, within_s=5, what="closed socket")


@on_loop
async def test_a_slow_reader_gets_all(requester: Requester) -> None:
    """More than the buffers hold: whoever sends waits, and goes on."""
    used, frame = await opened(requester), FRAME[:-3] + b'"' + b"x" * 1_000_000 + b'"}'
    for _ in range(20):
        await used.send(frame)
        await asyncio.sleep(0)
    await used.confirm()
    assert [seen.text for seen in requester.frames("an-id")] == [frame] * 20
    used.abandon()


async def stand_still(used: WebSocket, for_s: float) -> None:
    """As a process that is stopped while it waits, until behind the pong that is awaited: afterwards everything is due at
    once, and time-outs come before what came."""
    loop, (ours, theirs) = asyncio.get_running_loop(), socket.socketpair()
    over = loop.create_future()
    assert used._transport is not None
    number = used._transport.get_extra_info("socket").fileno()

    def stand() -> None:
        loop.remove_reader(ours)
        while used._asked and not select.select([number], [], [], 0.01)[0]:
            pass
        time.sleep(for_s)
        over.set_result(None)

    with ours, theirs:
        loop.add_reader(ours, stand)
        theirs.send(b"!")
        await over


@on_loop
async def test_a_process_that_was_stopped_reads_its_pongs_before_it_judges(
    requester: Requester, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value_s in {"LOOK_EACH_S": 0.02, "LATE_S": 0.1, "GONE_AFTER_S": 0.3}.items():
        monkeypatch.setattr(pools, name, value_s)
    requester.pongs_after_s = 0.1
    gone, pool = list[str](), SocketPool(Dialer())
    used = await pool.borrow(requester.websocket_url, gone.append)
    await until(lambda: used._asked, what="ping")
    await stand_still(used, 0.5)
    await until(lambda: not used._asked, what="pong")
    assert gone == []
    requester.pongs = False
    used.ping()
    await until(lambda: gone, what="end of patience")
    pool.abandon(used)


@on_loop
async def test_a_pong_that_came_in_time_counts_though_it_is_read_late(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "PONG_TIMEOUT_S", 0.3)
    requester.pongs_after_s = 0.1
    used = await opened(requester)
    confirming = asyncio.create_task(used.confirm())
    await until(lambda: used._asked, what="ping")
    await stand_still(used, 0.5)
    await confirming
    used.abandon()


@on_loop
async def test_without_a_pong_nothing_is_confirmed(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "PONG_TIMEOUT_S", 0.2)
    requester.pongs = False
    used = await opened(requester)
    with pytest.raises(TimeoutError):
        await used.confirm()
    requester.stop()
    await until(lambda: not used.is_open, what="end of the socket")
    with pytest.raises(ConnectionResetError):
        await used.confirm()


@on_loop
async def test_a_quiet_stream_answers_pings(requester: Requester) -> None:
    """A model may think for longer than a server waits for its pong."""
    requester.pings = True
    pool = SocketPool(Dialer())
    lent = await pool.borrow(requester.websocket_url)
    await lent.send(FRAME)
    await until(lambda: requester.pongs_received == 1, within_s=5, what="pong")
    await lent.send(FRAME)
    await lent.confirm()
    pool.abandon(lent)


@on_loop
async def test_a_rested_socket_is_taken_again_unless_it_is_stale(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SocketPool(Dialer())
    first = await pool.borrow(requester.websocket_url)
    pool.give_back(requester.websocket_url, first)
    assert await pool.borrow(requester.http_url.replace("/res", "/res/ws")) is first
    pool.give_back(requester.websocket_url, first)
    monkeypatch.setattr(pools, "IDLE_KEPT_S", -1.0)
    assert await pool.borrow(requester.websocket_url) is not first


@on_loop
async def test_nobodys_sockets_are_closed(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "LOOK_EACH_S", 0.05)
    monkeypatch.setattr(pools, "IDLE_KEPT_S", 0.2)
    pool = SocketPool(Dialer())
    pool.give_back(requester.websocket_url, await pool.borrow(requester.websocket_url))
    await until(lambda: requester.sockets == 1 and requester.open_connections == 0, within_s=5, what="closed socket")


@on_loop
async def test_a_socket_that_was_closed_meanwhile_is_not_taken(requester: Requester) -> None:
    pool = SocketPool(Dialer())
    first = await pool.borrow(requester.websocket_url)
    pool.give_back(requester.websocket_url, first)
    requester.stop()
    await until(lambda: not first.is_open, within_s=2, what="end of the socket")
    with pytest.raises(NotDelivered):
        await pool.borrow(requester.websocket_url)
    requester.start()
    second = await pool.borrow(requester.websocket_url)
    await second.send(FRAME)
    await second.confirm()
    assert second is not first and len(requester.frames("an-id")) == 1


@on_loop
async def test_who_has_a_socket_is_told_that_it_closed(requester: Requester) -> None:
    pool, gone = SocketPool(Dialer()), list[str]()
    await pool.borrow(requester.websocket_url, gone.append)
    requester.stop()
    await until(lambda: gone == ["the other side closed the WebSocket"], within_s=5, what="word of it")


@on_loop
async def test_no_websocket_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotDelivered):
        await open_socket("ws://127.0.0.1:9/res/ws", Dialer())
    with pytest.raises(NotDelivered):
        await open_socket("not an address", Dialer())
    monkeypatch.setattr(websocket, "OPEN_WITHIN_S", 0.2)
    with saying() as (endpoint, _), pytest.raises(NotDelivered, match="no WebSocket in time"):
        await open_socket(f"ws://{endpoint}", Dialer())


def test_addresses() -> None:
    assert http_url("ws://h:1/res") == "http://h:1/res" and http_url("https://h/res?a=b") == "https://h/res?a=b"
    assert websocket_url("http://h:1/res/ws") == "ws://h:1/res/ws" and websocket_url("https://h/x") == "wss://h/x"


@on_loop
async def test_a_hanging_post_ends(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("answers.post.TAKEN_WITHIN_S", 0.3)
    requester.hangs = True
    way = WholeDelivery(address(requester, stream=False), Couriers(1, None), run())
    way.whole(b"{}")
    with pytest.raises(NotDelivered):
        await way.finish()
    requester.hangs = False
    await way.finish()
    assert len(requester.posts("an-id")) == 1


# late ones

REFUSED = NotDelivered("refused")


def in_s(seconds: float) -> float:
    return time.monotonic() + seconds


def whole(requester: Requester, answer: bytes = b"{}") -> WholeDelivery:
    way = WholeDelivery(address(requester, stream=False), Couriers(1, None), run())
    way.whole(answer)
    return way


@on_loop
async def test_late_streams_leave_nothing_counted(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is limited; what was delivered must not count for ever."""
    monkeypatch.setattr(late, "MAX_KEPT_BYTES", 3000)
    monkeypatch.setattr(late, "FIRST_PAUSE_S", 0.05)
    deliveries = LateDeliveries()
    for number in range(5):
        requester.stop()
        way = StreamDelivery(address(requester, stream=True), Couriers(1, None), run())
        await way.chunk(b'"' + b"x" * 2000 + b'"')
        with pytest.raises(NotDelivered):
            await way.finish()
        delivering = asyncio.create_task(deliveries.deliver(way, in_s(10), REFUSED))
        requester.start()
        await delivering
        assert len(requester.frames("an-id")) == 2 * (number + 1)


@on_loop
async def test_too_much_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch, requester: Requester) -> None:
    monkeypatch.setattr(late, "MAX_KEPT_BYTES", 10)
    way = whole(requester, b'"0123456789"')
    with pytest.raises(NotDelivered) as given_up:
        await LateDeliveries().deliver(way, in_s(60), REFUSED)
    assert given_up.value is REFUSED and way.answer == b'"0123456789"' and requester.post_tries == 0


@on_loop
async def test_the_last_try_is_at_the_deadline(requester: Requester) -> None:
    requester.stop()
    began_s = time.monotonic()
    with pytest.raises(NotDelivered):
        await LateDeliveries().deliver(whole(requester), began_s + 0.7, REFUSED)  # the second pause alone is longer
    assert 0.7 <= time.monotonic() - began_s < 5


class Buggy(WholeDelivery):
    async def finish(self) -> None:
        raise ZeroDivisionError


@on_loop
async def test_a_bug_costs_one_delivery_only(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late, "MAX_KEPT_BYTES", 10)
    deliveries, buggy = LateDeliveries(), Buggy(address(requester, stream=False), Couriers(1, None), run())
    buggy.whole(b'"0123456"')
    for _ in range(3):
        with pytest.raises(Refused, match="ZeroDivisionError"):
            await deliveries.deliver(buggy, in_s(0), REFUSED)
    await deliveries.deliver(whole(requester), in_s(0.1), REFUSED)
    assert len(requester.posts("an-id")) == 1


@on_loop
async def test_a_late_answer_that_is_refused_waits_no_longer(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late, "FIRST_PAUSE_S", 0.05)
    requester.post_status = 413
    with pytest.raises(Refused, match="413"):
        await LateDeliveries().deliver(whole(requester), in_s(60), REFUSED)
    assert requester.post_tries == 1


@on_loop
async def test_sends_and_pongs_do_not_mix(requester: Requester) -> None:
    """Frames of ours, and answers to pings between them: the protocol's state is one."""
    requester.pings = True
    shared = await opened(requester)
    for _ in range(500):
        await shared.send(FRAME)
        await asyncio.sleep(0)
    await shared.confirm()
    assert len(requester.frames("an-id")) == 500
    await until(lambda: requester.pongs_received == 500, what="pongs")
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
@on_loop
async def test_an_answer_that_drips_has_a_deadline(monkeypatch: pytest.MonkeyPatch, pieces: list[bytes]) -> None:
    monkeypatch.setattr("answers.post.TAKEN_WITHIN_S", 0.5)
    began_s = time.monotonic()
    with saying(*pieces) as (endpoint, _), pytest.raises(NotDelivered):
        await Poster(1, Dialer()).post(f"http://{endpoint}", b"{}", early_until_s=0)
    assert 0.4 < time.monotonic() - began_s < 3


@pytest.mark.parametrize(
    "head", [b"Content-Length: 400\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n1;", b"\r\n"],
    ids=["length", "chunk's head", "no length"],
)  # fmt: skip
@on_loop
async def test_a_body_that_drips_changes_nothing_about_its_status(monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    monkeypatch.setattr("answers.post.TAKEN_WITHIN_S", 0.5)
    began_s = time.monotonic()
    with saying(b"HTTP/1.1 200 OK\r\n" + head, *DRIPPED) as (endpoint, _):
        await Poster(1, Dialer()).post(f"http://{endpoint}", b"{}", early_until_s=0)
    assert time.monotonic() - began_s < 3


@on_loop
async def test_a_status_counts_though_the_time_is_over_in_the_body_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was taken must not be posted again."""
    monkeypatch.setattr("answers.post.TAKEN_WITHIN_S", 0.5)
    monkeypatch.setattr("answers.post.SAID_WITHIN_S", 1.0)
    with saying(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n", *DRIPPED) as (endpoint, _):
        await Poster(1, Dialer()).post(f"http://{endpoint}", b"{}", early_until_s=0)


@on_loop
async def test_an_endless_body_is_not_read() -> None:
    endless = [b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n", *[b"x" * 10_000] * 10_000]
    with saying(*endless, each_s=0) as (endpoint, sent):
        await Poster(1, Dialer()).post(f"http://{endpoint}", b"{}", early_until_s=0)
        await until(lambda: sent[0] > 0, within_s=5, what="an answer")
        await Poster(1, Dialer()).post(f"http://{endpoint}", b"{}", early_until_s=0)
        assert sent[0] < 20_000_000  # what buffers of the kernel hold


@on_loop
async def test_connections_are_kept_from_answer_to_answer(requester: Requester) -> None:
    poster = Poster(1, Dialer())
    for _ in range(5):
        await poster.post(requester.http_url, b'{"request_id": "r", "data": {}}', early_until_s=0)
    assert (len(requester.posts("r")), requester.connections) == (5, 1)


@pytest.mark.parametrize("status", [400, 401, 405, 413])
@on_loop
async def test_a_refusal_is_final(requester: Requester, status: int) -> None:
    requester.post_status = status
    with pytest.raises(Refused, match=str(status)):
        await Poster(1, Dialer()).post(requester.http_url, b'{"request_id": "r", "data": {}}', early_until_s=0)


@pytest.mark.parametrize("status", [302, 408, 425, 429, 500, 503])
@on_loop
async def test_what_may_pass_is_not(requester: Requester, status: int) -> None:
    requester.post_status = status
    with pytest.raises(NotDelivered, match=str(status)) as raised:
        await Poster(1, Dialer()).post(requester.http_url, b'{"request_id": "r", "data": {}}', early_until_s=0)
    assert not isinstance(raised.value, Refused)


@pytest.mark.parametrize(("status", "final"), [(400, True), (403, True), (404, False), (429, False), (503, False)])
@on_loop
async def test_a_handshake_may_be_refused_for_good_too(status: int, final: bool) -> None:
    with saying(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status) as (endpoint, _), pytest.raises(NotDelivered) as raised:
        await open_socket(f"ws://{endpoint}", Dialer())
    assert isinstance(raised.value, Refused) is final and str(status) in str(raised.value)
