"""Completions into chunks and back, and whatever else may come."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import chunks
from backends.chunks import Assembler, Garbled

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
CALLS = st.lists(st.fixed_dictionaries({
    "id": st.text(min_size=1), "type": st.just("function"),
    "function": st.fixed_dictionaries({"name": st.text(), "arguments": st.text()}),
}), min_size=1, max_size=3)  # fmt: skip
MESSAGES = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": st.none() | st.text()},
    optional={"reasoning_content": st.text(), "tool_calls": CALLS, "refusal": st.none() | st.text()},
)
TOKENS = st.lists(st.fixed_dictionaries({"token": st.text(), "logprob": st.floats(-9, 0)}), max_size=3)
LOGPROBS = st.none() | st.fixed_dictionaries({"content": TOKENS, "refusal": st.none()})


@st.composite
def completions(draw: st.DrawFn) -> dict[str, Any]:
    reasons = st.sampled_from(["stop", "length", "tool_calls"])
    choices = [
        {"index": i, "message": draw(MESSAGES), "logprobs": draw(LOGPROBS), "finish_reason": draw(reasons)}
        for i in range(draw(st.integers(1, 3)))
    ]
    head = {"id": draw(st.text(min_size=1)), "object": "chat.completion", "created": 1700000000, "model": "m", "x": draw(JSON.filter(bool))}
    usage = {"usage": {"prompt_tokens": 1, "completion_tokens": draw(st.integers(0, 9)), "total_tokens": 9}}
    return head | {"choices": choices} | draw(st.sampled_from([{}, usage]))


def encoded(value: Any) -> bytes:
    return msgspec.json.encode(value)


@given(completions())
def test_to_chunks_and_back(completion: dict[str, Any]) -> None:
    assembler = Assembler()
    for chunk in chunks.to_chunks(encoded(completion), include_usage=True):
        assembler.add(chunk)
    assert json.loads(assembler.completion()) == json.loads(encoded(completion))


@given(completions(), st.booleans())
def test_chunks_look_like_chunks(completion: dict[str, Any], include_usage: bool) -> None:
    found = [json.loads(chunk) for chunk in chunks.to_chunks(encoded(completion), include_usage=include_usage)]
    assert all(chunk["object"] == "chat.completion.chunk" and chunk["id"] == completion["id"] for chunk in found)
    asked = include_usage and "usage" in completion
    assert sum("usage" in chunk for chunk in found) == asked and len(found) == 2 * len(completion["choices"]) + asked


ODD = st.fixed_dictionaries({}, optional={
    "choices": JSON | st.lists(JSON | st.fixed_dictionaries({}, optional={
        "index": JSON, "finish_reason": JSON, "logprobs": JSON,
        "delta": JSON | st.fixed_dictionaries({}, optional={"content": JSON, "role": JSON, "tool_calls": JSON | st.lists(JSON)}),
        "message": JSON | st.fixed_dictionaries({}, optional={"content": JSON, "tool_calls": JSON}),
    }), max_size=3),
    "usage": JSON, "timings": JSON, "error": JSON, "model": JSON,
})  # fmt: skip


@given(st.lists(JSON | ODD, max_size=4))
def test_odd_json_is_garbled_at_most(values: list[Any]) -> None:
    assembler = Assembler()
    for value in values:
        data = encoded(value)
        with contextlib.suppress(Garbled):
            peek = chunks.look(data)
            assert chunks.text_of(peek) >= 0
            assert peek.reported is None or all(0 <= count < 1 << 40 for count in peek.reported)
        with contextlib.suppress(Garbled):
            assert chunks.to_chunks(data, include_usage=True) is not None
        with contextlib.suppress(Garbled):
            assembler.add(data)
    with contextlib.suppress(Garbled):
        msgspec.json.decode(assembler.completion())


@st.composite
def with_a_line_break(draw: st.DrawFn) -> bytes:
    data = draw(JSON.map(encoded))
    cut = draw(st.integers(0, len(data)))
    return data[:cut] + b"\n" + data[cut:]


@given(st.binary(max_size=60) | with_a_line_break())
def test_odd_bytes_are_garbled_at_most(data: bytes) -> None:
    for reading in (chunks.look, chunks.compact, lambda d: chunks.to_chunks(d, include_usage=True), Assembler().add):
        with contextlib.suppress(Garbled):
            reading(data)


@pytest.mark.parametrize("data", [
    b"[" * 100_000 + b"]" * 100_000, b'{"choices":' * 50_000, b'{"choices": [{"delta": {"content": "\xff"}}]}', b'{"x": "\xff"}',
])  # fmt: skip
def test_depth_and_bad_characters_are_garbled(data: bytes) -> None:
    for reading in (chunks.look, Assembler().add):
        with pytest.raises(Garbled):
            reading(data)


def test_number_formats_and_unknown_fields_are_kept() -> None:
    whole = b'{"id": "a", "object": "x", "cost": 1.10, "choices": [{"index": 0, "message": {"content": "c", "score": 1E5}, "big": 1e999}]}'
    first, last = chunks.to_chunks(whole, include_usage=False)
    assert b'"cost":1.10' in first and b'"score":1E5' in first and b'"big":1e999' in first
    assert b'"finish_reason":"stop"' in last


def test_one_line() -> None:
    assert chunks.compact(b' {"a": "b c",\r\n "d":\n 1.0}\n') == b'{"a":"b c","d":1.0}'
    assert chunks.compact(b'{"a": 1}\n') == b'{"a": 1}'


def test_usage_is_taken_out_and_nothing_else() -> None:
    data = b'{"a": 1.0,"usage":null,"choices":[{"delta": {}}]}'
    assert shown(data) == b'{"a":1.0,"choices":[{"delta": {}}]}'
    assert shown(data, wants_usage=True) == data


def test_usage_at_the_end_is_taken_out_and_no_byte_else() -> None:
    data = b'{"a": 1.0,"choices":[{"delta": {"content":",\\"usage\\":null}"}}],"usage":null}'
    assert shown(data) == b'{"a": 1.0,"choices":[{"delta": {"content":",\\"usage\\":null}"}}]}'
    assert shown(data, wants_usage=True) == data
    inner = b'{"choices":[{"delta":{"usage":1,"usage":null}}]}'
    assert shown(inner) == inner


def shown(data: bytes, *, wants_usage: bool = False) -> bytes | None:
    return chunks.for_requester(data, chunks.look(data), wants_usage=wants_usage)


@pytest.mark.parametrize(("data", "hidden", "wanted"), [
    (b'{"choices":[],"usage":{"prompt_tokens":1}}', None, b'{"choices":[],"usage":{"prompt_tokens":1}}'),
    (b'{"choices":null,"usage":{"prompt_tokens":1}}', None, b'{"choices":[],"usage":{"prompt_tokens":1}}'),
    (b'{"usage":{"prompt_tokens":1}}', None, b'{"usage":{"prompt_tokens":1},"choices":[]}'),
    (b'{"choices":[],"usage":null}', b'{"choices":[]}', b'{"choices":[],"usage":null}'),
    (b'{"choices":[],"x": 1}', b'{"choices":[],"x": 1}', b'{"choices":[],"x": 1}'),
    (b'{"choices":null}', None, None),
    (b'{"x":1}', None, None),
    (b'{"choices":[{"index":0,"finish_reason":"stop"}]}', b'{"choices":[{"index":0,"finish_reason":"stop","delta":{}}]}', None),
    (b'{"choices":[{"delta":null,"b": 1.50},{"delta": {}}]}', b'{"choices":[{"delta":{},"b":1.50},{"delta":{}}]}', None),
])  # fmt: skip
def test_a_chunk_has_what_clients_look_into(data: bytes, hidden: bytes | None, wanted: bytes | None) -> None:
    found = shown(data)
    assert (None if found is None else json.loads(found)) == (None if hidden is None else json.loads(hidden))
    asked = shown(data, wants_usage=True)
    expected = hidden if wanted is None else wanted
    assert (None if asked is None else json.loads(asked)) == (None if expected is None else json.loads(expected))


@pytest.mark.parametrize(("data", "failed"), [
    (b'{"error":{"message":"m"}}', True), (b'{"error":"m","choices":[]}', True), (b'{"object":"error","message":"m","code":500}', True),
    (b'{"message":"m"}', True), (b'{"object":"error"}', True), (b'{"error":null,"choices":[]}', False),
    (b'{"object":"error","message":"m","choices":[]}', False), (b'{"message":{}}', False), (b"{}", False),
])  # fmt: skip
def test_what_is_an_error_object(data: bytes, failed: bool) -> None:
    assert chunks.look(data).failed is failed


def test_a_models_name_is_a_short_text() -> None:
    assert chunks.look(encoded({"model": "m" * 10_000})).model_name == "m" * 200
    assert chunks.look(b'{"model":5}').model_name is chunks.look(b'{"model":""}').model_name is None


@pytest.mark.parametrize(("fields", "found"), [
    ({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}, (3, 4)),
    ({"usage": {"prompt_tokens": 3.0, "completion_tokens": None}}, (3, 0)),
    ({"usage": None, "timings": {"prompt_n": 5, "predicted_n": 6}}, (5, 6)),
    ({"usage": {"prompt_tokens": 0, "completion_tokens": 0}}, None),
    ({"usage": {"prompt_tokens": -1, "completion_tokens": 10**30}}, None),
    ({"usage": "much"}, None),
    ({}, None),
])  # fmt: skip
def test_what_was_reported(fields: dict[str, Any], found: chunks.Usage | None) -> None:
    assert chunks.look(encoded(fields)).reported == found


def test_pieces_of_tool_calls_are_joined_by_their_index() -> None:
    assembler = Assembler()
    pieces: list[list[dict[str, Any]]] = [
        [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}],
        [{"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{"}}],
        [{"index": 0, "id": "a", "function": {"arguments": "{}"}}, {"index": 1, "id": "", "function": {"arguments": "}"}}],
    ]
    for calls in pieces:
        assembler.add(encoded({"choices": [{"index": 0, "delta": {"tool_calls": calls}}]}))
    (choice,) = json.loads(assembler.completion())["choices"]
    assert choice["message"]["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
