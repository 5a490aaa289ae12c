"""An upstream's answer off the wire: http.client's, with a body that is read as it comes, in one place and few steps."""

from __future__ import annotations

import http.client
import re

READ_BYTES = 64 << 10
MAX_LINE_BYTES = 64 << 10
MAX_TRAILER_BYTES = 64 << 10
_SIZE = re.compile(rb"[ \t]*([0-9a-fA-F]{1,16})[ \t]*(?:;.*)?\r?", re.DOTALL)


class Chunks:
    """Takes a body out of its transfer chunks (RFC 9112, 7.1)."""

    def __init__(self) -> None:
        self.done = self.overran = False  # overran: something came behind the end
        self._trailer_bytes = 0
        self._held = b""  # an unfinished line
        self._left_bytes = 0  # of the chunk that has begun
        self._line = self._size_line

    def feed(self, data: bytes) -> bytes:
        """What `data` holds of the body. Raises http.client's exceptions."""
        found: list[bytes] = []
        data, at = self._held + data, 0
        self._held = b""
        while at < len(data) and not self.done:
            if self._left_bytes:
                found.append(data[at : at + self._left_bytes])
                at += len(found[-1])
                self._left_bytes -= len(found[-1])
            elif (end := data.find(b"\n", at)) >= 0:
                line, at = data[at:end], end + 1
                self._line(line)
            else:
                self._hold(data[at:])
                break
        self.overran = at < len(data) and self.done
        return b"".join(found)

    def _hold(self, rest: bytes) -> None:
        if len(rest) > MAX_LINE_BYTES:
            raise http.client.LineTooLong("chunk size")
        self._held = rest

    def _size_line(self, line: bytes) -> None:
        found = _SIZE.fullmatch(line)
        if found is None:
            raise http.client.IncompleteRead(b"")
        self._left_bytes = int(found[1], 16)
        self._line = self._end_line if self._left_bytes else self._trailer_line

    def _end_line(self, line: bytes) -> None:
        """Behind a chunk's bytes."""
        if line not in (b"", b"\r"):
            raise http.client.IncompleteRead(b"")
        self._line = self._size_line

    def _trailer_line(self, line: bytes) -> None:
        self._trailer_bytes += len(line)
        self.done = line in (b"", b"\r")
        if self._trailer_bytes > MAX_TRAILER_BYTES:
            raise http.client.LineTooLong("trailer")


class Answer(http.client.HTTPResponse):
    """Made by a connection as its `response_class`. overran: more came than belongs to it, so that the connection is of no
    use to another request."""

    overran = False

    def begin(self) -> None:
        super().begin()
        self._chunks = Chunks() if self.chunked else None

    def read1(self, n: int = -1) -> bytes:
        """What has come of the body, as soon as anything has; b"" at its end. `n` is not kept to. Raises OSError and
        http.client's exceptions."""
        while self.fp is not None:
            data = self.fp.read1(READ_BYTES) if self.length != 0 else b""
            body = self.take(data)
            if body:
                return body
        return b""

    def take(self, data: bytes) -> bytes:
        """What `data`, read off the socket, holds of the body; b"" is the connection's end. Once it is whole, `fp` is None."""
        if self._chunks is not None:
            return self._take_chunks(self._chunks, data)
        if not data and self.length:
            raise http.client.IncompleteRead(b"", self.length)
        if self.length is not None:
            self.overran = len(data) > self.length
            data = data[: self.length]
            self.length -= len(data)
        if not data or self.length == 0:
            self._close_conn()  # type: ignore[attr-defined]  # of http.client: this answer is done with the connection
        return data

    def _take_chunks(self, chunks: Chunks, data: bytes) -> bytes:
        if not data:
            raise http.client.IncompleteRead(b"")
        body = chunks.feed(data)
        if chunks.done:
            self.overran = chunks.overran
            self._close_conn()  # type: ignore[attr-defined]
        return body
