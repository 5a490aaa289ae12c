"""The message of a request: what is read, what is refused, and what is read all the same of what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.envelope import Request, UnreadableRequest, decode, encode, traceparent_of

GOOD: dict[str, Any] = {
    "request_id": "4e0b8a0e", "stream": True, "endpoint": "ws://host:1/res/ws",
    "data": {"model": "m", "messages": []}, "metadata": {"headers": {"User-Agent": ["curl/8"]}},
}  # fmt: skip


def payload(**changes: Any) -> bytes:
    return msgspec.json.encode({name: value for name, value in (GOOD | changes).items() if value is not msgspec.UNSET})


def refused(data: bytes) -> UnreadableRequest:
    with pytest.raises(UnreadableRequest) as caught:
        decode(data)
    return caught.value


def test_a_request() -> None:
    request = decode(payload())
    assert (request.request_id, request.stream, request.endpoint) == ("4e0b8a0e", True, "ws://host:1/res/ws")
    assert request.metadata == {"headers": {"User-Agent": ["curl/8"]}}


def test_the_body_stays_byte_for_byte() -> None:
    body = b'{ "a" :1.50, "a": "\\u00e9" ,"n":123456789012345678901234567890 }'
    data = b'{"request_id":"i", "stream":false,"endpoint":"http://h/res","data": \n' + body + b' , "later": [1]}'
    request = decode(data)
    assert bytes(request.data) == body
    assert decode(encode(request)) == request


def test_unknown_and_missing_fields() -> None:
    assert decode(payload(unknown=[1, {"a": None}])).request_id == "4e0b8a0e"
    assert decode(payload(metadata=msgspec.UNSET)).metadata == {}
    assert decode(payload(metadata=None)).metadata is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, msgspec.UNSET) for field in ("request_id", "stream", "endpoint", "data")),
        *((field, None) for field in ("request_id", "stream", "endpoint", "data")),
        ("request_id", 7), ("request_id", ""), ("request_id", "a\nb"), ("request_id", "i" * 201),
        ("stream", "true"), ("stream", 1),
        ("endpoint", "host:1/res"), ("endpoint", "ftp://h"), ("endpoint", "http://"), ("endpoint", "http://h:x"),
        ("endpoint", "http://[::1"), ("endpoint", ["http://h"]),
        ("data", []), ("data", "{}"), ("data", 1),
        ("metadata", []), ("metadata", "x"),
    ],
)  # fmt: skip
def test_what_is_missing_or_wrong_is_named(field: str, value: Any) -> None:
    unreadable = refused(payload(**{field: value}))
    assert field in str(unreadable)
    assert unreadable.request_id == (None if field == "request_id" else "4e0b8a0e")
    assert unreadable.endpoint == (None if field == "endpoint" else "ws://host:1/res/ws")
    assert unreadable.stream is True or field in ("stream", "endpoint")


def test_what_kind_of_answer_is_awaited_where_stream_is_unreadable() -> None:
    assert refused(payload(stream=None)).stream is True
    assert refused(payload(stream=None, endpoint="http://h/res")).stream is False
    assert refused(payload(stream=False, data=1)).stream is False


DEEP = b"[" * 100_000
START = b'{"request_id":"i","stream":false,"endpoint":"http://h/res",'


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b"hello", b"\xff\xfe", b'{"request_id":"i"', DEEP, START + b'"data":' + DEEP, START[:-1] + b"}{}",
        START + b'"data":{},"metadata":' + DEEP,
    ],
)  # fmt: skip
def test_what_is_no_json(data: bytes) -> None:
    unreadable = refused(data)
    assert (unreadable.request_id, unreadable.endpoint) == (None, None)
    assert str(unreadable)


def test_text_that_is_no_utf8_spoils_its_own_field_only() -> None:
    unreadable = refused(b'{"request_id":"i","stream":false,"endpoint":"http://h/res","data":{},"metadata":{"a":"\xff"}}')
    assert (unreadable.request_id, unreadable.endpoint) == ("i", "http://h/res")
    unreadable = refused(b'{"request_id":"\xff","stream":false,"endpoint":"http://h/res","data":{}}')
    assert (unreadable.request_id, unreadable.endpoint) == (None, "http://h/res")


_likely = st.sampled_from(["http://h/res", "ws://h", {}, {"a": 1}])
_value = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=20) | _likely


@given(st.binary(max_size=100) | st.dictionaries(st.sampled_from([*GOOD, "x"]), _value).map(msgspec.json.encode))
def test_anything_is_a_request_or_an_unreadable_one(data: bytes) -> None:
    try:
        request = decode(data)
    except UnreadableRequest as unreadable:
        assert isinstance(unreadable.request_id, str | None) and isinstance(unreadable.stream, bool)
    else:
        assert isinstance(request, Request) and request.request_id and bytes(request.data).startswith(b"{")


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def traced(headers: Any) -> str:
    return traceparent_of(decode(payload(metadata={"headers": headers})))


@pytest.mark.parametrize("name", ["Traceparent", "traceparent"])
@pytest.mark.parametrize("value", [TRACE, TRACE.replace("00-", "cc-", 1), TRACE.replace("00-", "cc-", 1) + "-what-will-be"])
def test_a_trace_context(name: str, value: str) -> None:
    assert traced({name: [value]}) == value
    assert traced({name: value}) == value


@pytest.mark.parametrize(
    "value",
    [
        "", "x", TRACE.upper(), TRACE + "-more", TRACE + "\n", " " + TRACE, TRACE[:-1], TRACE.replace("00-", "ff-", 1),
        "00-" + "0" * 32 + "-b7ad6b7169203331-01", "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        "cc" + TRACE[2:] + "-" + "x" * 401, TRACE + "\r\nX-Injected: 1",
    ],
)  # fmt: skip
def test_what_is_no_trace_context_is_ignored(value: str) -> None:
    assert traced({"Traceparent": [value]}) == ""


@pytest.mark.parametrize("headers", [None, [], "x", {}, {"Traceparent": []}, {"Traceparent": [1]}, {"Traceparent": [TRACE, TRACE]}])
def test_odd_headers_hold_no_trace_context(headers: Any) -> None:
    assert traced(headers) == ""
