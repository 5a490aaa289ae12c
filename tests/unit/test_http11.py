"""Answers of HTTP/1.1, however they are cut, and what is none; connections that are used again, and those that are not."""

from __future__ import annotations

import asyncio
import gc
import gzip
import select
import socket
import threading
import time
import weakref
import zlib
from collections.abc import Iterator

import pytest

from net.dial import Names, connected, speak
from net.http11 import MAX_HEAD_BYTES, MAX_HELD_BYTES, MAX_INTERIM, Answer, BadAnswer, Connection, Connections
from tests.real.loop import on_loop, until

WITHIN_S = 10.0
LARGE = 32 << 20  # more than buffers of the kernel hold
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = b"4\r\nabcd\r\n1;name=value\r\ne\r\nA \r\n0123456789\r\n0\r\nX-Trailer: 1\r\n\r\n"
BODY = b"abcde0123456789"
BY_LENGTH, BY_CHUNKS, TO_THE_END = b"Content-Length: %d\r\n\r\n" % len(BODY), b"Transfer-Encoding: chunked\r\n\r\n", b"\r\n"
FRAMED = {"length": BY_LENGTH + BODY, "chunks": BY_CHUNKS + CHUNKED}
EVERY = FRAMED | {"to the end": TO_THE_END + BODY}


class Wire(asyncio.Transport):
    """What a connection does with its transport."""

    def __init__(self) -> None:
        ours, self._theirs = socket.socketpair()  # over which nothing comes
        super().__init__({"socket": ours})
        self.written = b""
        self.reads, self.is_open = True, True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def abort(self) -> None:
        self.is_open = False


class Asked:
    """One answer that is awaited, over a connection whose other side is the test."""

    def __init__(self) -> None:
        self.wire, self.connection = Wire(), Connection()
        self.connection.connection_made(self.wire)
        self.answer = self.connection.ask(b"POST / HTTP/1.1\r\n\r\n", b"{}")

    def hear(self, *pieces: bytes) -> Asked:
        for piece in pieces:
            if piece:
                self.connection.data_received(piece)
        return self

    def lose(self, error: Exception | None = None) -> Asked:
        self.connection.connection_lost(error)
        return self

    async def body(self) -> bytes:
        return await body_of(self.answer)


async def body_of(answer: Answer) -> bytes:
    by_s, found = time.monotonic() + WITHIN_S, b""
    await answer.head(by_s)
    while piece := await answer.read_some(by_s):
        found += piece
    assert answer.is_complete
    return found


def bytewise(data: bytes) -> Iterator[bytes]:
    return (bytes([byte]) for byte in data)


@on_loop
async def test_the_head_and_the_body_go_out() -> None:
    asked = Asked()
    assert asked.wire.written == b"POST / HTTP/1.1\r\n\r\n{}"


@on_loop
async def test_a_head_is_told() -> None:
    asked = Asked().hear(b"HTTP/1.1 429 Too Many\r\nRetry-After:  7 \r\nX-ODD: \xe9\r\nContent-Length: 0\r\n\r\n")
    assert await asked.body() == b"" and asked.answer.status == 429
    assert asked.answer.headers == {"retry-after": "7", "x-odd": "é", "content-length": "0"}


# bodies


@pytest.mark.parametrize("framing", EVERY)
@on_loop
async def test_an_answer_arrives_wherever_it_is_cut(framing: str) -> None:
    whole = HEAD + EVERY[framing]
    for cut in range(len(whole) + 1):
        asked = Asked().hear(whole[:cut], whole[cut:])
        if framing == "to the end":
            asked.lose()
        assert (await asked.body(), asked.answer.leaves_connection_usable) == (BODY, framing in FRAMED), cut


@pytest.mark.parametrize("framing", FRAMED)
@on_loop
async def test_a_byte_at_a_time(framing: str) -> None:
    assert await Asked().hear(*bytewise(HEAD + FRAMED[framing])).body() == BODY


@on_loop
async def test_what_has_come_is_read_though_there_will_be_more() -> None:
    asked, by_s = Asked().hear(HEAD + BY_LENGTH + b"abc", b"de"), time.monotonic() + WITHIN_S
    await asked.answer.head(by_s)
    assert await asked.answer.read_some(by_s) == b"abcde" and not asked.answer.is_complete
    reading = asyncio.create_task(asked.answer.read_some(by_s))
    await asyncio.sleep(0)
    asked.hear(b"0")
    assert await reading == b"0"


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
@on_loop
async def test_some_have_no_body(status: bytes) -> None:
    asked = Asked().hear(b"HTTP/1.1 " + status + b"\r\n\r\n")
    assert await asked.body() == b"" and asked.connection.rest()


NONE = [
    b"\r\n", b"xyz\r\n", b"-4\r\nabcd", b"0x4\r\nabcd", b"1_0\r\n", b"1\r\nab\r\n", b"f" * 17 + b"\r\n", b"1" * 65_537,
    b"4\nabcd\n0\n\n",
]  # fmt: skip


@pytest.mark.parametrize("wrong", NONE)
@on_loop
async def test_what_is_no_chunk_is_refused(wrong: bytes) -> None:
    with pytest.raises(BadAnswer):
        await Asked().hear(HEAD + BY_CHUNKS, wrong).body()


@pytest.mark.parametrize("endless", [b"X-More: and more\r\n", b"and more "], ids=["many", "one"])
@on_loop
async def test_trailers_have_an_end(endless: bytes) -> None:
    with pytest.raises(BadAnswer):
        await Asked().hear(HEAD + BY_CHUNKS + b"0\r\nX-First: ", *[endless * 1000] * 100).body()


@on_loop
async def test_a_chunks_head_has_an_end() -> None:
    with pytest.raises(BadAnswer):
        await Asked().hear(HEAD + BY_CHUNKS + b"1;name=", *[b"x" * 10_000] * 100).body()


@on_loop
async def test_a_body_has_none() -> None:
    asked = Asked().hear(HEAD + b"Content-Length: 3000000\r\n\r\n", *[b"x" * 1000] * 3000)
    assert await asked.body() == b"x" * 3_000_000


CUT_OFF = {
    "nothing": b"", "status": b"HTTP/1.1 20", "head": HEAD, "length": HEAD + BY_LENGTH + BODY[:-1], "no body": HEAD + BY_LENGTH,
    "chunk": HEAD + BY_CHUNKS + CHUNKED[:12], "trailer": HEAD + BY_CHUNKS + CHUNKED[:-2], "interim": b"HTTP/1.1 100 Continue\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("sent", CUT_OFF.values(), ids=CUT_OFF)
@on_loop
async def test_a_cut_does_not_pass_for_the_end(sent: bytes) -> None:
    asked = Asked().hear(sent).lose()
    with pytest.raises(BadAnswer, match="in the middle"):
        await asked.body()
    assert not asked.connection.rest()


@pytest.mark.parametrize("sent", [*EVERY.values(), b""], ids=[*EVERY, "head"])
@on_loop
async def test_a_reset_is_no_end_of_a_body(sent: bytes) -> None:
    """Also where the end of the connection would be one. What came whole before it is read all the same."""
    asked = Asked().hear(HEAD + sent).lose(ConnectionResetError("reset"))
    if sent in FRAMED.values():
        assert await asked.body() == BODY
    else:
        with pytest.raises(ConnectionResetError):
            await asked.body()


@on_loop
async def test_what_came_before_a_cut_is_read() -> None:
    asked, by_s = Asked().hear(HEAD + BY_LENGTH + b"abc").lose(), time.monotonic() + WITHIN_S
    await asked.answer.head(by_s)
    assert await asked.answer.read_some(by_s) == b"abc"
    with pytest.raises(BadAnswer):
        await asked.answer.read_some(by_s)


@on_loop
async def test_who_asks_over_a_connection_that_was_closed_hears_of_it() -> None:
    asked = Asked().hear(HEAD + FRAMED["length"])
    assert await asked.body() == BODY and asked.connection.rest()
    asked.lose()
    with pytest.raises(BadAnswer):
        await body_of(asked.connection.ask(b"", b""))


# heads


@pytest.mark.parametrize("wrong", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n"])
@on_loop
async def test_what_is_no_http_is_refused(wrong: bytes) -> None:
    with pytest.raises(BadAnswer, match="no HTTP"):
        await Asked().hear(wrong).body()


@on_loop
async def test_interim_answers_are_skipped() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"
    asked = Asked().hear(*bytewise(b"HTTP/1.1 100 Continue\r\n\r\n" + interim * (MAX_INTERIM - 1) + HEAD + BY_LENGTH + BODY))
    assert await asked.body() == BODY and asked.answer.status == 200
    assert set(asked.answer.headers) == {"content-type", "content-length"} and asked.connection.rest()


@on_loop
async def test_endless_ones_are_not() -> None:
    with pytest.raises(BadAnswer, match="interim"):
        await Asked().hear(b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_INTERIM + 1)).body()


@on_loop
async def test_another_protocol_is_not_changed_to() -> None:
    with pytest.raises(BadAnswer):
        await Asked().hear(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n").body()


@on_loop
async def test_a_head_may_be_long_but_not_longer() -> None:
    long = b"X-Long: " + b"x" * (MAX_HEAD_BYTES // 2) + b"\r\n"
    assert await Asked().hear(HEAD, long, BY_LENGTH + BODY).body() == BODY
    with pytest.raises(BadAnswer, match="bytes"):
        await Asked().hear(HEAD, long, long).body()


# packed bodies

PACKED = {"gzip": gzip.compress(BODY), "x-gzip": gzip.compress(BODY), "deflate": zlib.compress(BODY)}


def packed(encoding: str, data: bytes) -> bytes:
    return HEAD + b"Content-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (encoding.encode(), len(data)) + data


@pytest.mark.parametrize("encoding", PACKED)
@on_loop
async def test_a_packed_body_is_unpacked_wherever_it_is_cut(encoding: str) -> None:
    whole = packed(encoding, PACKED[encoding])
    for cut in range(len(whole)):
        assert await Asked().hear(whole[:cut], whole[cut:]).body() == BODY, cut


@on_loop
async def test_what_is_not_packed_stays_as_it_is() -> None:
    assert await Asked().hear(packed("identity", BODY)).body() == BODY


@pytest.mark.parametrize("encoding", PACKED)
@on_loop
async def test_what_cannot_be_unpacked_is_no_body(encoding: str) -> None:
    with pytest.raises(BadAnswer, match="unpacked"):
        await Asked().hear(packed(encoding, b"not packed at all")).body()


@on_loop
async def test_what_cannot_be_unpacked_to_the_end_is_no_body_either() -> None:
    broken = bytearray(gzip.compress(BODY))
    broken[-8] ^= 1  # of its check sum
    with pytest.raises(BadAnswer, match="unpacked"):
        await Asked().hear(HEAD + b"Content-Encoding: gzip\r\n\r\n" + broken).lose().body()


# waiting


@pytest.mark.parametrize(
    ("sent", "dripped"), [(b"", HEAD * 100), (HEAD + BY_CHUNKS, b"1;" + b"x" * 9000), (HEAD + BY_LENGTH, b"")],
    ids=["head", "chunk's head", "nothing"],
)  # fmt: skip
@on_loop
async def test_a_wait_has_an_end_whatever_drips_meanwhile(sent: bytes, dripped: bytes) -> None:
    asked, began_s = Asked().hear(sent), time.monotonic()

    async def drip() -> None:
        for byte in bytewise(dripped):
            asked.hear(byte)
            await asyncio.sleep(0.01)

    dripping = asyncio.create_task(drip())
    with pytest.raises(TimeoutError):
        await asked.answer.head(began_s + 0.3)
        await asked.answer.read_some(began_s + 0.3)
    assert 0.25 < time.monotonic() - began_s < 5
    dripping.cancel()


@on_loop
async def test_who_is_late_may_go_on_waiting() -> None:
    asked = Asked()
    with pytest.raises(TimeoutError):
        await asked.answer.head(time.monotonic())
    asked.hear(HEAD + FRAMED["length"])
    assert await asked.body() == BODY and asked.connection.rest()


# what nobody reads


@on_loop
async def test_a_reader_that_does_not_read_pauses_the_sender() -> None:
    asked, by_s = Asked().hear(HEAD + b"Content-Length: 9000000\r\n\r\n" + b"x" * MAX_HELD_BYTES), time.monotonic() + WITHIN_S
    assert asked.wire.reads
    asked.hear(b"x")
    assert not asked.wire.reads
    assert len(await asked.answer.read_some(by_s)) == MAX_HELD_BYTES + 1 and asked.wire.reads
    asked.hear(b"x")
    assert asked.wire.reads


@on_loop
async def test_a_paused_sender_really_waits_and_goes_on() -> None:
    whole, stuck = HEAD + b"Content-Length: %d\r\n\r\n" % LARGE + bytes(LARGE), threading.Event()

    def send() -> None:
        with listener.accept()[0] as theirs:
            theirs.recv(1)
            left = memoryview(whole)
            while left:
                if not select.select([], [theirs], [], 0.3)[1]:
                    stuck.set()
                    continue
                left = left[theirs.send(left[: 1 << 20]) :]
            theirs.recv(1)  # until it is closed

    with socket.create_server(("127.0.0.1", 0)) as listener:
        sending = asyncio.create_task(asyncio.to_thread(send))
        places = await Names().look_up(*listener.getsockname())
        connection = await speak(Connection, await connected(places, WITHIN_S), host="127.0.0.1", tls=None)
        answer = connection.ask(b"x", b"")
        await until(stuck.is_set, what="stuck sender")
        assert MAX_HELD_BYTES < answer._held_bytes < 2 * MAX_HELD_BYTES
        assert len(await body_of(answer)) == LARGE and connection.rest()
        connection.close()
        await sending


# which connections are used again


@pytest.mark.parametrize(
    ("sent", "usable"),
    [
        (HEAD + BY_LENGTH + BODY, True),
        (HEAD + b"Connection: close\r\n" + BY_LENGTH + BODY, False),
        (HEAD + b"Connection: Close\r\n" + BY_CHUNKS + CHUNKED, False),
        (HEAD.replace(b"1.1", b"1.0") + BY_LENGTH + BODY, False),
        (HEAD.replace(b"1.1", b"1.0") + b"Connection: keep-alive\r\n" + BY_LENGTH + BODY, True),
    ],
)
@on_loop
async def test_the_answer_says_whether_its_connection_is_kept(sent: bytes, usable: bool) -> None:
    asked = Asked().hear(sent)
    assert await asked.body() == BODY
    assert (asked.connection.rest(), asked.wire.is_open) == (usable, usable)


@pytest.mark.parametrize("behind", [b"HTTP/1.1 200 OK\r\n", b"more", b"\0"])
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("framing", FRAMED)
@on_loop
async def test_bytes_behind_an_answer_are_no_part_of_it(framing: str, at_once: bool, behind: bytes) -> None:
    """Nor of the next one's: its connection is closed."""
    whole = HEAD + FRAMED[framing]
    asked = Asked().hear(whole + behind) if at_once else Asked().hear(whole, behind)
    assert await asked.body() == BODY
    assert not asked.connection.rest() and not asked.wire.is_open


@on_loop
async def test_what_comes_unasked_closes_a_connection() -> None:
    asked = Asked().hear(HEAD + FRAMED["length"])
    assert await asked.body() == BODY and asked.connection.rest()
    asked.hear(b"HTTP/1.1 408 Request Timeout\r\n")
    assert not asked.wire.is_open and not asked.connection.is_open


async def answered() -> Asked:
    asked = Asked().hear(HEAD + FRAMED["length"])
    assert await asked.body() == BODY
    return asked


@on_loop
async def test_one_connection_gives_one_answer_after_the_other() -> None:
    kept, asked = Connections(1), await answered()
    for number in range(3):
        kept.give_back(asked.connection)
        assert kept.take() is asked.connection and kept.take() is None
        asked.answer = asked.connection.ask(b"", b"%d" % number)
        asked.hear(HEAD + FRAMED["chunks"])
        assert await asked.body() == BODY
    assert asked.wire.written.endswith(b"012")


@on_loop
async def test_the_newest_is_taken_first_and_the_oldest_given_up() -> None:
    kept, (oldest, older, newest) = Connections(2), [await answered() for _ in range(3)]
    for asked in (oldest, older, newest):
        kept.give_back(asked.connection)
    assert not oldest.wire.is_open
    assert [kept.take(), kept.take(), kept.take()] == [newest.connection, older.connection, None]


@on_loop
@pytest.mark.parametrize("framing", EVERY)
async def test_an_answer_that_is_over_leaves_nothing_to_the_garbage_collector(framing: str) -> None:
    """Whose work stops the loop of a busy child for tens of milliseconds."""
    kept, asked = Connections(1), Asked().hear(HEAD + EVERY[framing]).lose()
    assert await asked.body() == BODY
    left = weakref.ref(asked.answer)
    gc.disable()
    try:
        kept.give_back(asked.connection)
        del asked.answer
        assert left() is None
    finally:
        gc.enable()


@on_loop
async def test_what_was_closed_meanwhile_is_not_taken() -> None:
    kept, (closed, open_) = Connections(2), [await answered() for _ in range(2)]
    kept.give_back(open_.connection)
    kept.give_back(closed.connection)
    closed.lose()
    assert kept.take() is open_.connection


@on_loop
async def test_what_was_not_read_to_its_end_is_closed() -> None:
    """That tells the other side that nobody waits any more."""
    kept, asked = Connections(1), Asked().hear(HEAD + BY_LENGTH + b"abc")
    kept.give_back(asked.connection)
    assert kept.take() is None and not asked.wire.is_open


@on_loop
async def test_what_nobody_read_harms_no_later_answer() -> None:
    """All of it came, and so much that the sender was paused."""
    kept, asked = Connections(1), Asked()
    asked.hear(HEAD + b"Content-Length: %d\r\n\r\n" % (2 * MAX_HELD_BYTES), bytes(2 * MAX_HELD_BYTES))
    assert asked.answer.is_complete
    kept.give_back(asked.connection)
    assert kept.take() is None or asked.wire.reads


@on_loop
async def test_once_closed_nothing_is_kept() -> None:
    kept, rested, lent = Connections(2), await answered(), await answered()
    kept.give_back(rested.connection)
    kept.close()
    kept.give_back(lent.connection)
    assert kept.take() is None and not rested.wire.is_open and not lent.wire.is_open


@on_loop
async def test_a_kept_connection_that_was_closed_is_not_taken_though_the_loop_has_not_told_yet() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = await speak(Connection, await connected(await Names().look_up(*listener.getsockname()), WITHIN_S), host="", tls=None)
        theirs, _ = listener.accept()
        kept = Connections(1)
        kept.give_back(made)
        assert kept.take() is made
        kept.give_back(made)
        theirs.close()  # and the loop has no turn in between
        assert made.is_open and kept.take() is None and not made.is_open
