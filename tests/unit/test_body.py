"""The request's body on its way to the upstream, and what an upstream's refusal of its form teaches."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.body import Body, Habits
from backends.transport import UpstreamFailed

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
OURS = {"model", "stream", "stream_options"}


@given(st.dictionaries(st.text(), JSON, max_size=6), st.booleans(), st.booleans())
def test_only_three_fields_are_ours(fields: dict[str, Any], stream: bool, usage_option: bool) -> None:
    fields = {name: value for name, value in fields.items() if name not in OURS}
    body = Body(msgspec.json.encode(fields | {"model": "theirs", "stream": not stream}))
    sent = json.loads(body.for_upstream(model='m"', stream=stream, habits=Habits(usage_option=usage_option)))
    assert {name: value for name, value in sent.items() if name not in OURS} == fields
    assert (sent["model"], sent["stream"]) == ('m"', stream)
    assert sent.get("stream_options") == ({"include_usage": True} if stream and usage_option else None)


@given(st.binary(max_size=40) | JSON.map(msgspec.json.encode))
def test_what_is_no_object_is_a_bad_request(data: bytes) -> None:
    try:
        Body(data)
    except UpstreamFailed as failed:
        assert failed.failure.status == 400
    else:
        assert data.strip().startswith(b"{")


def test_values_keep_their_bytes() -> None:
    body = Body(b'{"temperature": 1.50, "messages": [ {"content": "\xc3\xa9\\u00e9"} ]}')
    sent = body.for_upstream(model="m", stream=False, habits=Habits())
    assert b'"temperature":1.50' in sent and b'[ {"content": "\xc3\xa9\\u00e9"} ]' in sent


@pytest.mark.parametrize(("options", "wanted"), [
    ({"stream_options": {"include_usage": True}}, True),
    ({"stream_options": {"include_usage": False}}, False),
    ({"stream_options": {}}, False),
    ({"stream_options": None}, False),
    ({}, False),
])  # fmt: skip
def test_who_wants_usage(options: dict[str, Any], wanted: bool) -> None:
    assert Body(msgspec.json.encode(options)).wants_usage is wanted


def test_the_requesters_own_options_stay() -> None:
    body = Body(b'{"stream_options": {"include_usage": false, "other": 1}}')
    sent = json.loads(body.for_upstream(model="m", stream=True, habits=Habits()))
    assert sent["stream_options"] == {"include_usage": True, "other": 1}


def test_the_size_of_the_prompt() -> None:
    assert Body(b'{"messages": [1]}').prompt_characters() == 3
    assert Body(b"{}").prompt_characters() == 0


def test_what_a_refusal_teaches() -> None:
    known = Habits()
    assert known.after_refusal("Unrecognized argument: stream_options", None, True) == Habits(usage_option=False)
    assert known.after_refusal("Unsupported value", "stream", True) == Habits(stream=False)
    assert known.after_refusal("This model only support stream mode", None, False) == Habits(stream=True)
    assert known.after_refusal("Invalid value: 'robot'", "messages[0].role", True) is None


@given(st.lists(st.tuples(st.sampled_from(["stream_options", "stream mode", "streaming", "else"]), st.booleans()), max_size=20))
def test_learning_ends(refusals: list[tuple[str, bool]]) -> None:
    """Each lesson is learned once: an upstream that refuses everything is asked three times at most."""
    habits, lessons = Habits(), 0
    for words, streamed in refusals:
        learned = habits.after_refusal(words, None, streamed)
        lessons += learned is not None
        habits = learned or habits
    assert lessons <= 2
