"""Server-sent events, read incrementally (WHATWG HTML, "Interpreting an event stream")."""

from __future__ import annotations

MAX_EVENT_BYTES = 16 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some servers open with one


class EventTooLong(Exception):
    """An event grew past MAX_EVENT_BYTES without an end."""


class EventReader:
    """Bytes in, as they come off the wire; the `data` of complete events out.

    Comments, `event`, `id`, `retry` and unknown fields are skipped. LF, CRLF and CR end a line.
    """

    def __init__(self) -> None:
        self._line = bytearray()  # an unfinished line
        self._data: list[bytes] = []  # the data lines of the unfinished event
        self._data_bytes = 0
        self._after_cr = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that `piece` completes. Raises EventTooLong."""
        if self._is_one_event(piece):  # as nearly all servers send them
            return [piece[6:-2]]
        if self._after_cr and piece[:1] == b"\n":  # the second half of a CRLF that was split
            piece = piece[1:]
            self._after_cr = False
        if not piece:
            return []
        self._after_cr = piece.endswith(b"\r")
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = piece.split(b"\n")
        events: list[bytes] = []
        for line in lines:
            if self._line:
                self._line += line
                line = bytes(self._line)
                self._line.clear()
            self._take(line, events)
        self._line += rest
        if len(self._line) + self._data_bytes > MAX_EVENT_BYTES:
            raise EventTooLong(f"an event of over {MAX_EVENT_BYTES:,} bytes")
        return events

    def _is_one_event(self, piece: bytes) -> bool:
        is_whole = piece.startswith(b"data: ") and piece.endswith(b"\n\n") and piece.find(b"\n") == len(piece) - 2
        return is_whole and not (self._line or self._data or self._after_cr) and b"\r" not in piece

    def _take(self, line: bytes, events: list[bytes]) -> None:
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
                self._data, self._data_bytes = [], 0
        elif line.startswith(b"data:"):
            value = line[6:] if line[5:6] == b" " else line[5:]
            self._data.append(value)
            self._data_bytes += len(value)
        elif line.startswith(_BYTE_ORDER_MARK):
            self._take(line[len(_BYTE_ORDER_MARK) :], events)

    def end(self) -> list[bytes]:
        """At the end of the stream: an event whose blank line was left out (some servers do) still counts."""
        events: list[bytes] = []
        self._take(bytes(self._line), events)
        self._line.clear()
        self._take(b"", events)
        return events
