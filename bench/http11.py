"""HTTP/1.1 messages cut out of a stream of bytes: no more of it than the parties of a measurement send each other."""

from __future__ import annotations

END_OF_HEAD = b"\r\n\r\n"


def response(status: str, body: bytes, content_type: str = "application/json") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def chunk(payload: bytes) -> bytes:
    """A piece of a chunked body; an empty one is its end."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def post(url_path: str, host: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    lines = [f"POST {url_path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def content_length(head: bytes) -> int | None:
    """None: none is told. `head` in lower case."""
    _, found, rest = head.partition(b"\r\ncontent-length:")
    return int(rest.split(b"\r\n", 1)[0]) if found else None


class RequestReader:
    """Bytes in, whole requests out: their heads, and their bodies of a told length."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._wanted = 0  # bytes without which there is nothing to be looked at
        self.expects_continue = False  # a client waits for `100 Continue` before it sends the body

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        self.expects_continue = False
        if self._kept or self._wanted:
            self._kept += data
            if len(self._kept) < self._wanted:
                return []
            data = bytes(self._kept)
        found, at = [], 0
        while (taken := self._one(data, at)) is not None:
            head, body, at = taken
            found.append((head, body))
        self._kept = bytearray(data[at:])
        return found

    def _one(self, data: bytes, at: int) -> tuple[bytes, bytes, int] | None:
        """A request, and where the next begins."""
        self._wanted = 0
        head_end = data.find(END_OF_HEAD, at)
        if head_end < 0:
            return None
        head, body_at = data[at:head_end], head_end + len(END_OF_HEAD)
        low = head.lower()
        end = body_at + (content_length(low) or 0)
        if len(data) < end:
            self._wanted = end - at
            self.expects_continue = len(data) == body_at and b"\r\nexpect: 100-continue" in low
            return None
        return head, data[body_at:end], end


class ResponseReader:
    """Bytes in, the payload of one response out, until it `is_complete`. Then `reset`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.status = 0
        self.is_complete = False
        self._kept = b""
        self._left: int | None = 0  # bytes of the body; None: it is chunked

    def feed(self, data: bytes) -> bytes:
        """The payload in it; what is half there comes with the rest."""
        if self._kept:
            data, self._kept = self._kept + data, b""
        if not self.status:
            head_end = data.find(END_OF_HEAD)
            if head_end < 0:
                self._kept = data
                return b""
            self.status = int(data[9:12])
            self._left = content_length(data[:head_end].lower())
            data = data[head_end + len(END_OF_HEAD) :]
        if self._left is None:
            return self._unchunked(data)
        self._left -= len(data)
        self.is_complete = self._left <= 0
        return data

    def _unchunked(self, data: bytes) -> bytes:
        found, at = [], 0
        while (line_end := data.find(b"\r\n", at)) >= 0:
            start = line_end + 2
            end = start + int(data[at:line_end], 16)
            if len(data) < end + 2:
                break
            at = end + 2
            if start == end:
                self.is_complete = True
                break
            found.append(data[start:end])
        self._kept = data[at:]
        return b"".join(found)
