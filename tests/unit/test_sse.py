"""Server-sent events: whatever the borders of what comes off the wire, the events are the same."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import sse
from backends.sse import EventReader, EventTooLong

LINES = st.sampled_from([
    b"data: {\"a\": 1}", b"data:x", b"data:", b"data:  two", b": comment", b":", b"event: e", b"id: 7", b"retry: 3", b"bare", b"",
    b"", b"data: [DONE]", "data: é🙂".encode(), b"\xef\xbb\xbfdata: marked",
])  # fmt: skip
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    end = draw(ENDS)
    return end.join(draw(st.lists(LINES, max_size=12))) + draw(st.sampled_from([b"", end, end + end]))


def read(pieces: list[bytes]) -> list[bytes]:
    reader = EventReader()
    return [event for piece in pieces for event in reader.feed(piece)] + reader.end()


def by_the_standard(text: bytes) -> list[bytes]:
    """The same, the plain way."""
    events: list[bytes] = []
    data: list[bytes] = []
    for line in [*text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"), b""]:
        line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            events += [b"\n".join(data)] if data else []
            data = []
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
    return events


@given(streams(), st.lists(st.integers(0, 300), max_size=30))
def test_any_split_gives_the_same_events(text: bytes, cuts: list[int]) -> None:
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(borders)]
    assert read(pieces) == by_the_standard(text)


@given(streams())
def test_byte_by_byte(text: bytes) -> None:
    assert read([text[i : i + 1] for i in range(len(text))]) == by_the_standard(text)


def test_an_event_is_there_with_its_blank_line() -> None:
    reader = EventReader()
    assert reader.feed(b"data: 1\n") == []
    assert reader.feed(b"\ndata: 2\r") == [b"1"]
    assert reader.feed(b"\n") == []
    assert reader.feed(b"\r") == [b"2"]


def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    for line in (b"data: " + b"x" * 60, b"data: " + b"x" * 60 + b"\n"):
        reader = EventReader()
        reader.feed(line)
        with pytest.raises(EventTooLong):
            reader.feed(line)
