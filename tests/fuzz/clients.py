"""What a client of the gateway, or somebody who passes for a node, might send: raw bytes, in pieces, by seed and number."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.fuzz.values import damaged, mutated, odd, written

BODY: dict[str, Any] = {"model": "static", "messages": [{"role": "user", "content": "hi"}], "stream": False, "max_tokens": 5}
ANSWER: dict[str, Any] = {"request_id": "00000000-0000-4000-8000-000000000000", "end": True, "data": {"choices": []}}
BEGIN: dict[str, Any] = {"type": "begin", "request_id": ANSWER["request_id"], "attempt": 1}
_METHODS = [b"GET", b"POST", b"PUT", b"OPTIONS", b"HEAD", b"TRACE", b"CONNECT", b"PRI", b"get", b"G\xc3\x89T", b"", b"X" * 300]
_PATHS = [
    b"/v1/chat/completions", b"/api/v1/chat/completions", b"/v1/models", b"/v1/models/static", b"/v1/models/%00", b"/health", b"/res",
    b"/res/ws", b"/res/link", b"/", b"*", b"", b"//v1/models", b"/../../etc/passwd", b"/%2e%2e/", b"/v1/models/%ff%fe", b"/\xff\xfe",
    b"http://169.254.169.254/", b"/" + b"a" * 9000, b"/v1/models?" + b"q=1&" * 500, b"/a b", b"/v1/chat/completions#x",
]  # fmt: skip
_VERSIONS = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.1 ", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/11", b"http/1.1", b"HTTP/1.\xb2", b""]
_HEADERS = [
    b"Host: x", b"Host: x\r\nHost: y", b"Host:", b"Connection: close", b"Connection: keep-alive, upgrade", b"Expect: 100-continue",
    b"Expect: nothing", b"Upgrade: h2c", b"Upgrade: websocket", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: chunked, x",
    b"Transfer-Encoding : chunked", b"Transfer-Encoding:\x0bchunked", b"Content-Length: -1", b"Content-Length: 1, 2", b"Content-Length: +5",
    b"Content-Length: 99999999999999999999", b"Content-Length: 5\r\nContent-Length: 6", b"Content-Encoding: gzip", b"Range: bytes=0-",
    b"Authorization: Bearer " + b"x" * 20_000, b"Cookie: " + b"a=b; " * 2000, b"X: " + b"y" * 70_000, b": nameless", b"No colon",
    b"Folded: a\r\n b", b"Null: a\x00b", b"Bare: a\nb: c", b"Caf\xc3\xa9: x", b"Origin: null", b"Sec-WebSocket-Version: 99",
]  # fmt: skip
_CHUNKS = [
    b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"FFFFFFFFFFFFFFFFF\r\nx", b"-1\r\nx\r\n", b"5;" + b"x" * 5000 + b"\r\nhello\r\n0\r\n\r\n",
    b"5\nhello\n0\n\n", b"0x5\r\nhello\r\n0\r\n\r\n", b"5\r\nhel", b"5\r\nhello!!\r\n0\r\n\r\n", b"zz\r\n", b"\r\n\r\n",
    b"0\r\nTrailer: x\r\n\r\n",
    b"0\r\n" + b"T: x\r\n" * 3000 + b"\r\n", b" 5 \r\nhello\r\n0\r\n\r\n", b"1\r\nx\r\n" * 500 + b"0\r\n\r\n",
]  # fmt: skip


@dataclass(frozen=True)
class Sent:
    """pieces: with a moment between them; then: close, reset, or read whether something comes."""

    kind: str
    pieces: list[bytes]
    then: str


def case(seed: int, number: int) -> Sent:
    """The same again for the same two."""
    rng = Random(seed * 1_000_003 + number)
    kind, make = rng.choice(_KINDS)
    raw = make(rng)
    return Sent(kind, _pieces(rng, raw), rng.choice(("read", "read", "read", "close", "reset")))


def _pieces(rng: Random, raw: bytes) -> list[bytes]:
    if rng.random() < 0.7 or len(raw) < 2:
        return [raw]
    cuts = sorted(rng.randrange(1, len(raw)) for _ in range(rng.choice((1, 1, 2, 5))))
    return [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]


def _request(method: bytes, path: bytes, headers: list[bytes], body: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join([b" ".join([method, path, version]), *headers]) + b"\r\n\r\n" + body


def _posted(path: bytes, body: bytes, *more: bytes) -> bytes:
    return _request(b"POST", path, [b"Host: x", b"Content-Type: application/json", b"Content-Length: %d" % len(body), *more], body)


def _garbage(rng: Random) -> bytes:
    return rng.randbytes(rng.choice((1, 10, 300, 100_000)))


def _damaged(rng: Random) -> bytes:
    return damaged(rng, _posted(b"/v1/chat/completions", written(BODY)))


def _cut(rng: Random) -> bytes:
    whole = _posted(b"/v1/chat/completions", written(BODY))
    return whole[: rng.randrange(1, len(whole))]


def _line(rng: Random) -> bytes:
    return _request(rng.choice(_METHODS), rng.choice(_PATHS), [b"Host: x"], version=rng.choice(_VERSIONS))


def _headers(rng: Random) -> bytes:
    body = written(BODY)
    chosen = rng.sample(_HEADERS, rng.choice((1, 2, 4)))
    return _request(b"POST", rng.choice(_PATHS[:9]), [*chosen, b"Content-Length: %d" % len(body)][:: rng.choice((1, -1))], body)


def _many(rng: Random) -> bytes:
    return _request(b"GET", b"/health", [b"X-%d: y" % n for n in range(rng.choice((101, 1000, 20_000)))])


def _chunked(rng: Random) -> bytes:
    headers = [b"Host: x", b"Transfer-Encoding: chunked"] + [b"Content-Length: 5"] * (rng.random() < 0.2)
    return _request(b"POST", rng.choice(_PATHS[:9]), headers, rng.choice(_CHUNKS))


def _asked(rng: Random) -> bytes:
    return _posted(rng.choice(_PATHS[:2]), written(mutated(rng, BODY), spaced=rng.random() < 0.2))


def _answered(rng: Random) -> bytes:
    return _posted(b"/res", written(mutated(rng, ANSWER)))


def _pipelined(rng: Random) -> bytes:
    some = [_line, _asked, _answered, _cut, _chunked, _many]
    return b"".join(rng.choice(some)(rng) for _ in range(rng.choice((2, 5, 50))))


def _websocket(rng: Random) -> bytes:
    key = base64.b64encode(rng.randbytes(rng.choice((16, 16, 16, 5))))
    headers = [b"Host: x", b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: " + key]
    frames = b"".join(_frame(rng) for _ in range(rng.choice((0, 1, 3, 30))))
    return _request(b"GET", rng.choice((b"/res/ws", b"/res/link", b"/res/link", b"/v1/models")), headers, frames)


def _frame(rng: Random) -> bytes:
    """Masked, as a client's are, mostly; of any opcode, with a length that may be another's."""
    payload = rng.choice((written(mutated(rng, BEGIN)), written(mutated(rng, ANSWER)), written(odd(rng)), rng.randbytes(20)))[:60_000]
    first = rng.choice((0x81, 0x81, 0x81, 0x01, 0x80, 0x82, 0x88, 0x89, 0x8A, 0xF1, 0x8F))
    mask = rng.randbytes(4)
    said = len(payload) if rng.random() < 0.9 else rng.choice((0, 2**20, 2**40, 2**63 - 1))
    length = bytes([0x80 | said]) if said < 126 else b"\xff" + said.to_bytes(8, "big")
    masked = bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))
    return bytes([first]) + length + mask + masked


_KINDS: list[tuple[str, Callable[[Random], bytes]]] = [
    ("garbage", _garbage), ("damaged", _damaged), ("cut", _cut), ("line", _line), ("headers", _headers), ("many headers", _many),
    ("chunked", _chunked), ("asked", _asked), ("answered", _answered), ("pipelined", _pipelined), ("websocket", _websocket),
]  # fmt: skip
