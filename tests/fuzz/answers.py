"""Answers as they come over the wire: a body with its head, whole or broken at any place, and what becomes of the connection."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

from ipc.messages import End
from tests.fuzz import bodies
from tests.fuzz.bodies import Said
from tests.fuzz.values import damaged

HOW = Literal["keep", "close", "reset", "hang"]
Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Answer:
    """pieces: each after a pause in seconds; how: what then becomes of the connection (hang: nothing, until the other side ends)."""

    pieces: tuple[tuple[float, bytes], ...]
    how: HOW


@dataclass(frozen=True)
class Case:
    """stream, usage: what the requester asks for; by_link: how it is answered; end, text: what must come of it, where that
    is known."""

    number: int
    stream: bool
    usage: bool
    by_link: bool
    answer: Answer
    end: End | None
    text: str | None


def case(seed: int, number: int) -> Case:
    """The same for the same seed and number."""
    rng = Random(f"{seed}/{number}")
    text = f"this is the answer of {number} é🙂"
    stream, usage, by_link = rng.random() < 0.5, rng.random() < 0.3, rng.random() < 0.5
    says = rng.choices(_SAYS, _WEIGHTS)[0]
    said: Said = says(rng, text)
    answer, intact = _sent(rng, said)
    end = "retry" if says is bodies.cut and not stream else said.end
    return Case(number, stream, usage, by_link, answer, end if intact else None, said.text if intact else None)


_SAYS = [bodies.good, bodies.cut, bodies.error, bodies.odd_error, bodies.odd_whole, bodies.odd_stream, bodies.rubbish]
_WEIGHTS = [20, 5, 15, 12, 15, 30, 8]

_ODD_TIMES = [b"0", b"1", b"-1", b"0.5", b"120", b"121", b"1e3", b"nan", b"inf", b"9" * 40, b"soon", b"", b"\xff", b"1s", b"6m0s", b"12ms",
              b"1h2m3s", b"Fri, 31 Dec 9999 23:59:59 GMT", b"Wed, 21 Oct 2015 07:28:00 GMT", b"Mon, 99 Foo 2015", b"1,2", b" 7 ",
              "٣".encode()]  # fmt: skip
_TIME_NAMES = [b"Retry-After", b"retry-after-ms", b"Date", b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests",
               b"X-RateLimit-Remaining-Tokens", b"x-ratelimit-reset-requests", b"x-ratelimit-reset-tokens"]  # fmt: skip


def _sent(rng: Random, said: Said) -> tuple[Answer, bool]:
    """The answer, and whether nothing is wrong with how it is sent."""
    headers: Headers = [(b"Content-Type", said.kind.encode())] if said.kind else []
    headers += [(name, rng.choice(_ODD_TIMES)) for name in rng.sample(_TIME_NAMES, rng.choice((0, 0, 1, 4)))]
    start = b"HTTP/1.1 %d %s\r\n" % (said.status, rng.choice((b"OK", b"", b"Some Words", b"\xe9")))
    if rng.random() < 0.55:
        framed, how = _framed(rng, said.body)
        return Answer(_pieces(rng, start + _head(headers + framed[0]) + framed[1]), how), said.status not in (204, 304)
    fault = rng.choice(_FAULTS)
    return fault(rng, start, headers, said.body), False


def _head(headers: Headers) -> bytes:
    return b"".join(name + b": " + value + b"\r\n" for name, value in headers) + b"\r\n"


def _framed(rng: Random, body: bytes) -> tuple[tuple[Headers, bytes], HOW]:
    """In one of the right ways."""
    way = rng.randrange(4)
    if way == 0:
        return ([(b"Content-Length", b"%d" % len(body))], body), "keep"
    if way == 1:
        return ([(b"Content-Length", b"%d" % len(body)), (b"Connection", b"close")], body), "close"
    if way == 2:
        return ([(b"Connection", b"close")], body), "close"
    return ([(b"Transfer-Encoding", b"chunked")], _chunked(rng, body)), "keep"


def _chunked(rng: Random, body: bytes) -> bytes:
    pieces = _split(rng, body, rng.choice((1, 3, 10)))
    extension = rng.choice((b"", b"", b";x=y"))
    return b"".join(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces if piece) + b"0\r\n\r\n"


def _split(rng: Random, data: bytes, count: int) -> list[bytes]:
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(count - 1))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def _pieces(rng: Random, data: bytes) -> tuple[tuple[float, bytes], ...]:
    if rng.random() < 0.7:
        return ((0.0, data),)
    return tuple((rng.choice((0.0, 0.001, 0.02)), piece) for piece in _split(rng, data, rng.choice((2, 5, 12))))


# what may be wrong with it


def _cut(rng: Random, start: bytes, headers: Headers, body: bytes) -> Answer:
    framed, _ = _framed(rng, body)
    whole = start + _head(headers + framed[0]) + framed[1]
    return Answer(_pieces(rng, whole[: rng.randrange(len(whole))]), rng.choice(("close", "reset")))


def _cut_body(rng: Random, start: bytes, headers: Headers, body: bytes) -> Answer:
    framed, _ = _framed(rng, body)
    sent = framed[1][: rng.randrange(len(framed[1]) + 1)]
    return Answer(_pieces(rng, start + _head(headers + framed[0]) + sent), rng.choice(("close", "reset", "close", "reset", "keep")))


def _wrong_length(rng: Random, start: bytes, headers: Headers, body: bytes) -> Answer:
    lengths = [b"0", b"%d" % (len(body) // 2), b"%d" % (len(body) + 50), b"-1", b"abc", b"", b"9" * 30, b"1, 1", b"%d" % (1 << 40), b"+5",
               b"0x10", b"%d, %d" % (len(body), len(body))]  # fmt: skip
    given: Headers = [(b"Content-Length", rng.choice(lengths))]
    if rng.random() < 0.3:
        given.append((b"Content-Length", rng.choice(lengths)))
    return Answer(_pieces(rng, start + _head(headers + given) + body), rng.choice(("close", "keep", "reset")))


def _wrong_chunks(rng: Random, start: bytes, headers: Headers, body: bytes) -> Answer:
    given: Headers = [(b"Transfer-Encoding", rng.choice((b"chunked", b"chunked", b"Chunked", b"gzip, chunked", b"x", b"chunked, chunked")))]
    if rng.random() < 0.3:
        given.append((b"Content-Length", b"%d" % len(body)))
    chunked = _chunked(rng, body)
    broken = rng.choice((
        lambda: body, lambda: chunked[:-5], lambda: damaged(rng, chunked), lambda: b"zz\r\n" + chunked, lambda: b"-5\r\n" + chunked,
        lambda: b"f" * 40 + b"\r\n" + body, lambda: b"%x\r\n%s" % (len(body) + 9, body), lambda: chunked.replace(b"\r\n", b"\n"),
        lambda: chunked[:-2] + b"Trailer: x\r\n\r\n", lambda: chunked + b"more", lambda: b"1" * 70_000,
    ))()  # fmt: skip
    return Answer(_pieces(rng, start + _head(headers + given) + broken), rng.choice(("close", "keep", "reset")))


def _encoded(rng: Random, start: bytes, headers: Headers, body: bytes) -> Answer:
    """Nobody asked for an encoding."""
    name = rng.choice((b"gzip", b"deflate", b"br", b"zstd", b"x-gzip", b"identity", b"gzip, gzip", b"foo", b"gzip, " * 20 + b"gzip", b""))
    sent = rng.choice((
        lambda: body, lambda: gzip.compress(body, mtime=0), lambda: zlib.compress(body), lambda: gzip.compress(body, mtime=0)[:-8],
        lambda: damaged(rng, gzip.compress(body, mtime=0)), lambda: gzip.compress(b" " * (8 << 20), mtime=0),
    ))()  # fmt: skip
    given = [(b"Content-Encoding", name), (b"Content-Length", b"%d" % len(sent))]
    return Answer(_pieces(rng, start + _head(headers + given) + sent), rng.choice(("keep", "close")))


def _odd_start(rng: Random, start: bytes, headers: Headers, body: bytes) -> Answer:
    first = rng.choice((
        b"HTTP/1.1 200\r\n", b"HTTP/1.0 200 OK\r\n", b"HTTP/2 200 OK\r\n", b"HTTP/0.9 200 OK\r\n", b"ICY 200 OK\r\n",
        b"HTTP/1.1 abc OK\r\n", b"HTTP/1.1 99 X\r\n", b"HTTP/1.1 999 X\r\n", b"HTTP/1.1 1000 X\r\n", b"HTTP/1.1 -200 X\r\n",
        b"HTTP/1.1\r\n", b"\r\n", b"\r\n" + start,
        b"HTTP/1.1 100 Continue\r\n\r\n" + start, b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + start, b"HTTP/1.1 101 Switching\r\n",
        b"HTTP/1.1 200 " + b"x" * 70_000 + b"\r\n", b"\x16\x03\x01\x02\x00", b"HTTP/1.1 \xff\xfe\r\n", start.replace(b"\r\n", b"\n"),
        b"HTTP/1.1 100 Continue\r\n\r\n" * 30 + start,
    ))  # fmt: skip
    framed, _ = _framed(rng, body)
    return Answer(_pieces(rng, first + _head(headers + framed[0]) + framed[1]), rng.choice(("close", "keep")))


def _odd_headers(rng: Random, start: bytes, headers: Headers, body: bytes) -> Answer:
    framed, how = _framed(rng, body)
    raw = rng.choice((
        b"no colon here\r\n", b": no name\r\n", b"X: " + b"y" * 70_000 + b"\r\n", b"X: y\r\n" * 150, b"X-\x00: \x00\r\n",
        b"X: \xff\xfe\xe2\x82\r\n", b"X: a\r\n folded\r\n\tagain\r\n", b" leading: x\r\n", b"Content-Type: \r\n",
        b"Content-Type: text/event-stream\r\n" * 2, b"X : y\r\n",
        b"Content-Type: application/json; charset=" + b"\xff" * 10 + b"\r\n", b"Set-Cookie: a=b; sk-abcdef123456\r\n",
        b"Connection: x, close\r\n", b"Content-Type: text/event-stream" + b";" * 5000 + b"\r\n", b"Location: http://10.0.0.1/\r\n",
        b"X: y\n", b"X: y\r", b"\x00\r\n", b"x-should-retry: " + rng.choice((b"true", b"false", b"TRUE", b"maybe", b"\xff")) + b"\r\n",
        b"Keep-Alive: timeout=0\r\n",
    ))  # fmt: skip
    return Answer(_pieces(rng, start + raw + _head(headers + framed[0]) + framed[1]), how)


def _damaged(rng: Random, start: bytes, headers: Headers, body: bytes) -> Answer:
    framed, _ = _framed(rng, body)
    whole = start + _head(headers + framed[0]) + framed[1]
    return Answer(_pieces(rng, damaged(rng, whole)), rng.choice(("close", "reset", "close", "keep")))


def _more_behind(rng: Random, start: bytes, headers: Headers, body: bytes) -> Answer:
    """Bytes behind the answer, which must not become the next one's."""
    whole = start + _head([*headers, (b"Content-Length", b"%d" % len(body))]) + body
    more = rng.choice((b"\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", rng.randbytes(200), b"x" * 100_000))
    return Answer(((0.0, whole + more),), "keep")


def _slow(rng: Random, start: bytes, headers: Headers, body: bytes) -> Answer:
    framed, how = _framed(rng, body)
    whole = start + _head(headers + framed[0]) + framed[1]
    pieces = [(0.02, piece) for piece in _split(rng, whole, 25)]
    return Answer(tuple(pieces), how)


def _nothing(rng: Random, start: bytes, headers: Headers, body: bytes) -> Answer:
    return Answer((), rng.choice(("close", "reset")))


def _silence(rng: Random, start: bytes, headers: Headers, body: bytes) -> Answer:
    """Seldom, as each costs a time-out: nothing more comes, or comments only, or a byte now and then."""
    if rng.random() < 0.85:
        return _slow(rng, start, headers, body)
    framed, _ = _framed(rng, body)
    whole = start + _head(headers + framed[0]) + framed[1]
    some = whole[: rng.randrange(len(whole))]
    drip = rng.choice((b"", b"", b": keep-alive\n\n", b"\n", b"1"))
    return Answer(((0.0, some), *(((0.25, drip),) * 60 if drip else ())), "hang")


Fault = Callable[[Random, bytes, Headers, bytes], Answer]
_FAULTS: list[Fault] = [
    _cut, _cut, _cut_body, _cut_body, _wrong_length, _wrong_length, _wrong_chunks, _wrong_chunks, _encoded, _odd_start, _odd_headers,
    _odd_headers, _damaged, _damaged, _more_behind, _slow, _nothing, _silence,
]  # fmt: skip
