"""A body's transfer chunks, however they are cut, and what is none."""

from __future__ import annotations

import http.client
import socket

import pytest

from backends.answer import MAX_LINE_BYTES, Answer, Chunks

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = b"4\r\nabcd\r\n1;name=value\r\ne\r\nA \r\n0123456789\r\n0\r\nX-Trailer: 1\r\n\r\n"
BODY = b"abcde0123456789"


def test_a_body_arrives_wherever_it_is_cut() -> None:
    for cut in range(len(CHUNKED) + 1):
        chunks = Chunks()
        found = chunks.feed(CHUNKED[:cut]) + chunks.feed(CHUNKED[cut:])
        assert (found, chunks.done, chunks.overran) == (BODY, True, False), cut


def test_a_byte_at_a_time() -> None:
    chunks = Chunks()
    assert b"".join(chunks.feed(bytes([byte])) for byte in CHUNKED) == BODY and chunks.done


def test_bare_line_feeds_are_understood() -> None:
    chunks = Chunks()
    assert chunks.feed(CHUNKED.replace(b"\r\n", b"\n")) == BODY and chunks.done


def test_what_follows_is_no_part_of_it() -> None:
    chunks = Chunks()
    assert chunks.feed(CHUNKED + b"HTTP/1.1 200 OK") == BODY and chunks.overran


NONE = [b"\r\n", b"xyz\r\n", b"-4\r\nabcd", b"0x4\r\nabcd", b"1_0\r\n", b"1\r\nab\r\n", b"f" * 17 + b"\r\n", b"1" * (MAX_LINE_BYTES + 1)]


@pytest.mark.parametrize("wrong", NONE)
def test_what_is_no_chunk_is_refused(wrong: bytes) -> None:
    with pytest.raises(http.client.HTTPException):
        Chunks().feed(wrong)


def test_trailers_have_an_end() -> None:
    with pytest.raises(http.client.HTTPException):
        Chunks().feed(b"0\r\n" + b"X-More: and more\r\n" * 10_000)


@pytest.mark.parametrize(
    ("head", "sent", "body", "overran"),
    [
        (b"Content-Length: 5\r\n\r\n", b"hello", b"hello", False),
        (b"Content-Length: 0\r\n\r\n", b"", b"", False),
        (b"Content-Length: 5\r\n\r\n", b"hello and more", b"hello", True),
        (b"Transfer-Encoding: chunked\r\n\r\n", CHUNKED, BODY, False),
        (b"Connection: close\r\n\r\n", b"to the end", b"to the end", False),
        (b"Content-Length: 5\r\n\r\n", b"hell", None, False),
        (b"Transfer-Encoding: chunked\r\n\r\n", CHUNKED[:12], None, False),
    ],
)
def test_an_answer_is_read_to_its_end(head: bytes, sent: bytes, body: bytes | None, overran: bool) -> None:
    """`body` None: it is cut, which must not pass for its end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(HEAD + head + sent)
        theirs.shutdown(socket.SHUT_WR)
        answer = Answer(ours, method="POST")
        answer.begin()
        if body is None:
            with pytest.raises(http.client.IncompleteRead):
                read_all(answer)
        else:
            assert read_all(answer) == body and answer.isclosed() and answer.overran == overran


def read_all(answer: Answer) -> bytes:
    found = b""
    while piece := answer.read1():
        found += piece
    return found
