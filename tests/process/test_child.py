"""A real backend child against a real upstream and a real requester: what the requester gets, and the one Outcome."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from ipc.messages import Begun, Outcome
from tests.real.crew import Backends, settings, task
from tests.real.requester import Requester
from tests.real.upstream import Upstream

KEY = "sk-test-0123456789abcdef"
WORDS = "t0 t1 t2 t3 t4 t5 t6 t7"


@pytest.fixture(scope="module")
def requester() -> Iterator[Requester]:
    with Requester() as requester:
        yield requester


@pytest.fixture(scope="module")
def child(_shared_upstream: Upstream) -> Iterator[Backends]:
    """Impatient: half a second for the first output, and between two pieces."""
    given = settings(_shared_upstream.url, FIRST_TOKEN_TIMEOUT_S="500ms", READ_TIMEOUT_S="500ms", API_KEY=KEY)
    with Backends(given, lease_s=120.0) as child:  # nobody renews it while a test has a child of its own
        yield child


@pytest.fixture
def fresh_child(_shared_upstream: Upstream) -> Iterator[Backends]:
    """One that has not learned anything yet."""
    with Backends(settings(_shared_upstream.url)) as child:
        yield child


def text(message: dict[str, Any]) -> str:
    return message.get("content") or ""


def chunks(requester: Requester, request_id: str) -> list[dict[str, Any]]:
    """The chunks of a stream that ended well."""
    *frames, last = requester.stream(request_id)
    assert last == {"request_id": request_id, "end": True}
    assert all(frame["end"] is False and frame["request_id"] == request_id for frame in frames)
    return [frame["data"] for frame in frames]


def streamed_text(found: list[dict[str, Any]]) -> str:
    return "".join(text(choice["delta"]) for chunk in found for choice in chunk["choices"])


def tokens(outcome: Outcome) -> tuple[int, int, str]:
    return outcome.prompt_tokens, outcome.completion_tokens, outcome.tokens_source


GOOD = ["mock", "crlf", "comments", "unknown-fields", "no-space", "multi-line-data", "one-segment", "no-done", "llamafile",
        "comments-first?latency=700ms", "comments-first?latency=200ms", "trickle?gap=1ms", "no-stream", "reasoning", "logprobs"]
# Keep-alives are no output: where they last longer than FIRST_TOKEN_TIMEOUT_S, it is over (a whole answer may take longer).
GOOD_STREAMS = ["only-stream", *(behaviour for behaviour in GOOD if "700ms" not in behaviour)]


@pytest.mark.parametrize("behaviour", GOOD_STREAMS)
def test_a_stream_arrives(child: Backends, requester: Requester, behaviour: str) -> None:
    asked = task(requester, behaviour, stream=True)
    outcome = child.run(asked)
    assert (outcome.end, outcome.error, tokens(outcome)) == ("answered", None, (2, 8, "reported"))
    found = chunks(requester, asked.request_id)
    assert streamed_text(found) == WORDS
    assert found[-1]["choices"][0]["finish_reason"] == "stop" and all("usage" not in chunk for chunk in found)
    assert outcome.upstream_model == "gpt-test"
    assert outcome.upstream_sent_ms and outcome.first_token_ms and outcome.last_token_ms and outcome.answered_ms
    assert outcome.upstream_sent_ms <= outcome.first_token_ms <= outcome.last_token_ms <= outcome.answered_ms


@pytest.mark.parametrize("behaviour", GOOD)
def test_a_whole_answer_arrives(child: Backends, requester: Requester, behaviour: str) -> None:
    asked = task(requester, behaviour, stream=False)
    outcome = child.run(asked)
    assert (outcome.end, outcome.error, tokens(outcome)) == ("answered", None, (2, 8, "reported"))
    (posted,) = requester.posts(asked.request_id)
    answer = posted.json["data"]
    assert answer["object"] == "chat.completion" and text(answer["choices"][0]["message"]) == WORDS
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 8, "total_tokens": 10}
    assert answer["choices"][0]["finish_reason"] == "stop" and b"\n" not in posted.text


# behaviour → how it ends (a stream, a whole answer): (end, code of the error); "failed" has begun to stream
BROKEN = {
    "never": (("retry", "upstream_timeout"), ("retry", "upstream_timeout")),
    "never-after-headers": (("retry", "upstream_timeout"), ("retry", "upstream_timeout")),
    "keep-alives": (("retry", "upstream_timeout"), ("retry", "upstream_timeout")),
    "reset": (("retry", "upstream_reset"), ("retry", "upstream_reset")),
    "close": (("retry", "upstream_reset"), ("retry", "upstream_reset")),
    "reset-midstream": (("failed", "upstream_reset"), ("retry", "upstream_reset")),
    "close-midstream": (("failed", "upstream_reset"), ("retry", "upstream_reset")),
    "hang-midstream": (("failed", "upstream_timeout"), ("retry", "upstream_timeout")),
    "cut-midstream": (("failed", "upstream_cut"), ("retry", "upstream_garbled")),
    "sse-error": (("retry", None), ("retry", None)),
    "sse-error-done": (("retry", None), ("retry", None)),
    "sse-error-midstream": (("failed", None), ("retry", "upstream_garbled")),
    "sse-error-midstream-done": (("failed", None), ("retry", "upstream_garbled")),
    "html": (("retry", "upstream_garbled"), ("retry", "upstream_garbled")),
    "bad-json": (("retry", "upstream_garbled"), ("retry", "upstream_garbled")),
    "bad-json-event": (("retry", "upstream_garbled"), ("retry", "upstream_garbled")),
    "empty": (("retry", "upstream_cut"), ("retry", "upstream_garbled")),
}


@pytest.mark.parametrize("behaviour", BROKEN)
def test_a_broken_stream_is_tried_again_or_ended(child: Backends, requester: Requester, behaviour: str) -> None:
    asked = task(requester, behaviour, stream=True)
    outcome = child.run(asked)
    assert outcome.error is not None
    assert (outcome.end, outcome.error["code"]) == BROKEN[behaviour][0]
    begun = [m for m, _ in child.messages(asked.number) if isinstance(m, Begun)]
    if outcome.end == "retry":  # the requester knows nothing of it
        assert begun == [] and requester.frames(asked.request_id) == []
        return
    *frames, last = requester.stream(asked.request_id)
    assert len(begun) == 1 and last == {"request_id": asked.request_id, "end": True, "data": {"error": outcome.error}}
    assert WORDS.startswith(streamed_text([frame["data"] for frame in frames])) and len(frames) >= 2
    assert outcome.tokens_source == "estimated" and outcome.completion_tokens > 0


@pytest.mark.parametrize("behaviour", BROKEN)
def test_a_broken_whole_answer_is_tried_again(child: Backends, requester: Requester, behaviour: str) -> None:
    asked = task(requester, behaviour, stream=False, ttl_s=0.6)
    outcome = child.run(asked)
    assert outcome.error is not None
    assert (outcome.end, outcome.error["code"]) == BROKEN[behaviour][1]
    assert requester.posts(asked.request_id) == []


FAILURES = {
    "err-400": ("failed", "invalid_value", None, None),
    "err-422": ("failed", None, None, None),
    "err-context": ("failed", "context_length_exceeded", None, None),
    "err-too-large": ("failed", "rate_limit_exceeded", None, None),
    "err-500-should-not-retry": ("failed", None, None, None),
    "err-401": ("trouble", "invalid_api_key", "AuthenticationError", None),
    "err-401-unknown": ("trouble", None, "AuthenticationError", None),
    "err-403-unknown": ("trouble", None, "AuthenticationError", None),
    "err-404-model": ("trouble", "model_not_found", "ConfigurationError", None),
    "err-quota": ("trouble", "insufficient_quota", "APIQuotaExceededError", None),
    "err-429": ("throttle", "rate_limit_exceeded", None, 1.0),
    "err-429-ms": ("throttle", "rate_limit_exceeded", None, 0.3),
    "err-429-bare": ("throttle", "rate_limit_exceeded", None, None),
    "err-500": ("retry", None, None, None),
    "err-502-html": ("retry", None, None, None),
    "err-503-loading": ("retry", 503, None, None),
}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("behaviour", FAILURES)
def test_an_error_status(child: Backends, requester: Requester, behaviour: str, stream: bool) -> None:
    asked = task(requester, behaviour, stream=stream)
    outcome = child.run(asked)
    assert outcome.error is not None and KEY[-4:] not in str(outcome)
    assert (outcome.end, outcome.error["code"], outcome.reason, outcome.wait_s) == FAILURES[behaviour]
    assert outcome.confirm == (behaviour in ("err-401-unknown", "err-403-unknown"))
    posts, frames = requester.posts(asked.request_id), requester.frames(asked.request_id)
    if outcome.end != "failed":
        assert posts == frames == []
    elif stream:
        assert [seen.json for seen in frames] == [{"request_id": asked.request_id, "end": True, "data": {"error": outcome.error}}]
    else:
        assert [seen.json for seen in posts] == [{"request_id": asked.request_id, "data": {"error": outcome.error}}]
    assert tokens(outcome) == (0, 0, "none")


def test_a_long_line_and_split_characters(child: Backends, requester: Requester) -> None:
    long, odd = (task(requester, behaviour, stream=True) for behaviour in ("long-line", "odd-borders?tokens=3"))
    assert child.run(long).end == child.run(odd).end == "answered"
    assert streamed_text(chunks(requester, long.request_id)) == "x" * 1_000_000
    assert streamed_text(chunks(requester, odd.request_id)) == "é🙂t0é🙂 t1é🙂 t2é🙂"


@pytest.mark.parametrize(("behaviour", "fields"), [("mock", {}), ("mock", {"n": 2}), ("tools", {}), ("reasoning", {})])
def test_a_stream_assembles_to_the_whole_answer(
    fresh_child: Backends, requester: Requester, behaviour: str, fields: dict[str, Any]
) -> None:
    """The same question, to an upstream that may answer as it likes, and to one that only streams."""
    whole, insists = task(requester, behaviour, stream=False, **fields), task(requester, "needs-stream", stream=False)
    assert fresh_child.run(whole).end == fresh_child.run(insists).end == "answered"
    streamed = task(requester, behaviour, stream=False, **fields)
    assert fresh_child.run(streamed).end == "answered"
    ((first,), (second,)) = (requester.posts(asked.request_id) for asked in (whole, streamed))
    expected = {k: v for k, v in first.json["data"].items() if k != "system_fingerprint"}
    assert second.json["data"] == expected


def test_logprobs_are_appended(fresh_child: Backends, requester: Requester) -> None:
    assert fresh_child.run(task(requester, "needs-stream", stream=False)).end == "answered"
    asked = task(requester, "logprobs?tokens=3", stream=False)
    assert fresh_child.run(asked).end == "answered"
    (posted,) = requester.posts(asked.request_id)
    found = posted.json["data"]["choices"][0]["logprobs"]
    assert [entry["token"] for entry in found["content"]] == ["t0", " t1", " t2"] and found["refusal"] is None


def test_tool_calls_of_a_whole_answer_are_streamed(child: Backends, requester: Requester) -> None:
    asked = task(requester, "no-stream", stream=True)
    assert child.run(asked).end == "answered"
    first, last = chunks(requester, asked.request_id)
    assert first["object"] == last["object"] == "chat.completion.chunk" and first["choices"][0]["delta"]["role"] == "assistant"
    assert (first["choices"][0]["finish_reason"], last["choices"][0]) == (None, {"index": 0, "delta": {}, "finish_reason": "stop"})


@pytest.mark.parametrize("behaviour", ["mock", "no-stream"])
def test_usage_is_for_those_who_ask(child: Backends, requester: Requester, behaviour: str) -> None:
    asked = task(requester, behaviour, stream=True, stream_options={"include_usage": True})
    assert child.run(asked).end == "answered"
    *before, last = chunks(requester, asked.request_id)
    assert last["choices"] == [] and last["usage"]["total_tokens"] == 10
    assert all(chunk["choices"] for chunk in before)


def test_chunks_keep_their_bytes(child: Backends, requester: Requester) -> None:
    """Those of a requester that asks for usage are passed on as they are: the upstream writes compact JSON."""
    asked = task(requester, "mock?tokens=1", stream=True, stream_options={"include_usage": True})
    assert child.run(asked).end == "answered"
    chunk = (b'{"id":"chatcmpl-test","object":"chat.completion.chunk","created":1700000000,"model":"gpt-test","choices":[{"index":0,'
             b'"delta":{"content":"t0"},"logprobs":null,"finish_reason":null}],"usage":null}')  # fmt: skip
    frame = requester.frames(asked.request_id)[1]
    assert frame.text == b'{"request_id":"' + asked.request_id.encode() + b'","end":false,"data":' + chunk + b"}"


def test_the_body_goes_on_as_it_came(upstream: Upstream, child: Backends, requester: Requester) -> None:
    asked = task(requester, stream=True, temperature=0.1, unheard_of={"a": [1, 2.50]}, stream_options={"more": 1})
    assert child.run(asked).end == "answered"
    (sent,) = upstream.requests()
    assert sent["body"] == {
        "model": "gpt-test", "mock": "mock", "messages": [{"role": "user", "content": "hello there"}], "temperature": 0.1,
        "unheard_of": {"a": [1, 2.5]}, "stream": True, "stream_options": {"more": 1, "include_usage": True},
    }  # fmt: skip
    assert sent["headers"]["authorization"] == f"Bearer {KEY}" and sent["path"] == "/v1/chat/completions"


@pytest.mark.parametrize("data", [b"[]", b"{", b'{"messages": [], "stream_options": 5}', b'{"messages": "\xff'])
def test_a_body_that_is_no_object_is_answered(child: Backends, requester: Requester, data: bytes) -> None:
    asked = msgspec.structs.replace(task(requester, stream=False), data=data)
    outcome = child.run(asked)
    assert outcome.end == "failed" and outcome.error is not None and outcome.error["type"] == "invalid_request_error"
    assert requester.posts(asked.request_id)[0].json["data"] == {"error": outcome.error}


# what an upstream insists on is learned


@pytest.mark.parametrize(("behaviour", "stream"), [("refuses-stream", True), ("needs-stream", False), ("refuses-stream-options", True)])
def test_an_insisting_upstream_is_learned(
    upstream: Upstream, fresh_child: Backends, requester: Requester, behaviour: str, stream: bool
) -> None:
    for _ in range(2):
        asked = task(requester, behaviour, stream=stream)
        outcome = fresh_child.run(asked)
        assert outcome.end == "answered" and outcome.completion_tokens > 0
        if stream:
            assert streamed_text(chunks(requester, asked.request_id)) == WORDS
        else:
            assert text(requester.posts(asked.request_id)[0].json["data"]["choices"][0]["message"]) == WORDS
    assert len(upstream.requests()) == 3  # refused once, and asked rightly at once the second time
    assert tokens(outcome)[2] == ("estimated" if behaviour == "refuses-stream-options" else "reported")


def test_an_upstream_that_only_streams_is_asked_for_its_usage(fresh_child: Backends, requester: Requester) -> None:
    first, second = (fresh_child.run(task(requester, "only-stream", stream=False)) for _ in range(2))
    assert (first.end, second.end) == ("answered", "answered")
    assert (tokens(first)[2], tokens(second)) == ("estimated", (2, 8, "reported"))


def test_an_error_of_another_kind_teaches_nothing(upstream: Upstream, fresh_child: Backends, requester: Requester) -> None:
    assert fresh_child.run(task(requester, "err-400", stream=True)).end == "failed"
    assert fresh_child.run(task(requester, stream=True)).end == "answered"
    assert upstream.requests()[-1]["body"]["stream"] is True and len(upstream.requests()) == 2
