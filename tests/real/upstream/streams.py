"""What a 200 looks like, right and wrong: whole objects, SSE streams in every dialect seen, and broken ones.

A behaviour is a function of the request that returns a Reply; BEHAVIOURS at the end names them all.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

from tests.real.upstream.ask import Ask, Cut, Kill, Reply, Reset, seconds
from tests.real.upstream.failures import FAILURES, Failure, failure

Json = dict[str, Any]
DONE = b"data: [DONE]\n\n"
STREAM_ERROR = {"error": {"message": "The server had an error while processing your request.", "type": "server_error", "code": None}}
WEATHER_CALL = {"id": "call_test", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich", "days": 3}'}}


def event(payload: Json) -> bytes:
    return b"data: " + json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


# --- whole answers


def whole_object(ask: Ask, **message: Any) -> Json:
    ask.usage_reported = True
    said = {"role": "assistant", "content": ask.text} | message
    reason = "tool_calls" if "tool_calls" in message else "stop"
    choices = [{"index": i, "message": said, "logprobs": None, "finish_reason": reason} for i in range(ask.choices)]
    head = {"id": "chatcmpl-test", "object": "chat.completion", "created": 1700000000, "model": ask.body.get("model")}
    return head | {"choices": choices, "usage": ask.usage, "system_fingerprint": "fp_test"}


async def _after_wait(ask: Ask, payload: bytes) -> AsyncIterator[bytes]:
    """As a model would: the whole answer comes once the last token is done."""
    await asyncio.sleep(seconds(ask.params.get("latency", "0")) + (ask.tokens - 1) * seconds(ask.params.get("gap", "0")))
    yield payload


def whole(ask: Ask, **message: Any) -> Reply:
    payload = json.dumps(whole_object(ask, **message), ensure_ascii=False).encode()
    return Reply(_after_wait(ask, payload), length=len(payload))


# --- streams


def chunk(ask: Ask, delta: Json, finish_reason: str | None = None, index: int = 0, **more: Any) -> Json:
    head = {"id": "chatcmpl-test", "object": "chat.completion.chunk", "created": 1700000000, "model": ask.body.get("model")}
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason} | more
    return head | {"choices": [choice]} | ({"usage": None} if ask.include_usage else {})


def usage_chunk(ask: Ask) -> list[bytes]:
    if not ask.include_usage:
        return []
    ask.usage_reported = True
    return [event(chunk(ask, {}) | {"choices": [], "usage": ask.usage})]


async def content(ask: Ask) -> AsyncIterator[bytes]:
    """The opening chunk with the role, then the words; of n choices in turn."""
    async for i, word in ask.paced():
        for index in range(ask.choices):
            if i == 0:
                yield event(chunk(ask, {"role": "assistant", "content": ""}, index=index))
            yield event(chunk(ask, {"content": word}, index=index))


def ending(ask: Ask, reason: str = "stop") -> list[bytes]:
    return [*(event(chunk(ask, {}, reason, index)) for index in range(ask.choices)), *usage_chunk(ask), DONE]


async def good_events(ask: Ask) -> AsyncIterator[bytes]:
    async for piece in content(ask):
        yield piece
    for piece in ending(ask):
        yield piece


def sse(pieces: AsyncIterator[bytes]) -> Reply:
    return Reply(pieces, content_type="text/event-stream")


def normal(ask: Ask) -> Reply:
    return sse(good_events(ask)) if ask.stream else whole(ask)


# --- what models may say beside text


async def _tool_events(ask: Ask) -> AsyncIterator[bytes]:
    await ask.first_wait()
    function = WEATHER_CALL["function"]
    assert isinstance(function, dict)
    opened = WEATHER_CALL | {"index": 0, "function": function | {"arguments": ""}}
    yield event(chunk(ask, {"role": "assistant", "content": None, "tool_calls": [opened]}))
    for start in range(0, len(function["arguments"]), 5):
        piece = {"index": 0, "function": {"arguments": function["arguments"][start : start + 5]}}
        yield event(chunk(ask, {"tool_calls": [piece]}))
    for end in ending(ask, "tool_calls"):
        yield end


def tools(ask: Ask) -> Reply:
    return sse(_tool_events(ask)) if ask.stream else whole(ask, content=None, tool_calls=[WEATHER_CALL])


async def _reasoning_events(ask: Ask) -> AsyncIterator[bytes]:
    await ask.first_wait()
    yield event(chunk(ask, {"role": "assistant", "content": None, "reasoning_content": ""}))
    for thought in ("I", " think"):
        yield event(chunk(ask, {"content": None, "reasoning_content": thought}))
    async for piece in good_events(ask):
        yield piece


def reasoning(ask: Ask) -> Reply:
    return sse(_reasoning_events(ask)) if ask.stream else whole(ask, reasoning_content="I think")


def _logprob(token: str) -> Json:
    return {"content": [{"token": token, "logprob": -0.25, "bytes": list(token.encode()), "top_logprobs": []}], "refusal": None}


async def _logprob_events(ask: Ask) -> AsyncIterator[bytes]:
    async for _, word in ask.paced():
        yield event(chunk(ask, {"content": word}, logprobs=_logprob(word)))
    for end in ending(ask):
        yield end


def logprobs(ask: Ask) -> Reply:
    if ask.stream:
        return sse(_logprob_events(ask))
    answer = whole_object(ask)
    answer["choices"][0]["logprobs"] = _logprob(ask.text)
    return Reply(json.dumps(answer).encode())


# --- dialects of SSE, all valid


async def _rewritten(ask: Ask, rewrite: Callable[[bytes], bytes]) -> AsyncIterator[bytes]:
    async for piece in good_events(ask):
        yield rewrite(piece)


def dialect(rewrite: Callable[[bytes], bytes]) -> Callable[[Ask], Reply]:
    """A stream whose events are written otherwise; a whole answer stays as it is."""
    return lambda ask: sse(_rewritten(ask, rewrite)) if ask.stream else whole(ask)


def _over_lines(piece: bytes) -> bytes:
    """One event's JSON over several `data:` lines, which a reader joins with line breaks."""
    if piece == DONE:
        return piece
    lines = json.dumps(json.loads(piece[6:]), indent=1, ensure_ascii=False).splitlines()
    return b"".join(b"data: " + line.encode() + b"\n" for line in lines) + b"\n"


async def _odd_borders(ask: Ask) -> AsyncIterator[bytes]:
    """7 bytes at a time: borders inside lines, names and the characters of `é🙂`, which each word carries."""
    text = b"".join([piece.replace(b'"}', "é🙂".encode() + b'"}', 1) async for piece in content(ask)] + ending(ask))
    for start in range(0, len(text), 7):
        yield text[start : start + 7]
        await asyncio.sleep(0)


async def _one_segment(ask: Ask) -> AsyncIterator[bytes]:
    yield b"".join([piece async for piece in good_events(ask)])


async def _long_line(ask: Ask) -> AsyncIterator[bytes]:
    yield event(chunk(ask, {"role": "assistant", "content": "x" * 1_000_000}))
    for end in ending(ask):
        yield end


async def _without_done(ask: Ask) -> AsyncIterator[bytes]:
    async for piece in good_events(ask):
        if piece != DONE:
            yield piece


async def _llamafile(ask: Ask) -> AsyncIterator[bytes]:
    """llamafile 0.8.1: neither usage nor [DONE], but timings in the last chunk."""
    async for piece in content(ask):
        yield piece
    ask.usage_reported = True
    timings = {"prompt_n": ask.usage["prompt_tokens"], "predicted_n": ask.tokens, "predicted_per_second": 80.0}
    yield event(chunk(ask, {}, "stop") | {"timings": timings})


def streams_only(pieces: Callable[[Ask], AsyncIterator[bytes]]) -> Callable[[Ask], Reply]:
    return lambda ask: sse(pieces(ask)) if ask.stream else whole(ask)


# --- upstreams that insist


def _refusing(found: Failure, refused: Callable[[Ask], bool]) -> Callable[[Ask], Reply]:
    return lambda ask: failure(found, ask) if refused(ask) else normal(ask)


def _bad_request(message: str, param: str | None) -> Failure:
    return Failure(400, {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}})


REFUSES_OPTIONS = _bad_request("Unrecognized request argument supplied: stream_options", "stream_options")
REFUSES_STREAM = _bad_request("Unsupported value: 'stream' does not support true with this model.", "stream")
NEEDS_STREAM = _bad_request("This model only support stream mode, please enable the stream parameter to access the model.", None)


# --- broken answers


async def _hang(*first: bytes) -> AsyncIterator[bytes]:
    for piece in first:
        yield piece
    await asyncio.Event().wait()


async def _raise(error: Exception) -> AsyncIterator[bytes]:
    raise error
    yield b""


async def _half(ask: Ask) -> AsyncIterator[bytes]:
    """The first half: of the words, or of the whole object's bytes."""
    if not ask.stream:
        text = json.dumps(whole_object(ask)).encode()
        yield text[: len(text) // 2]
        return
    pieces = [piece async for piece in content(ask)]
    for piece in pieces[: max(2, len(pieces) // 2)]:
        yield piece
        await asyncio.sleep(seconds(ask.params.get("gap", "0")))


def half_then(end: Callable[[], AsyncIterator[bytes]], *, announced: bool = False) -> Callable[[Ask], Reply]:
    """Half an answer, then `end`. announced: a whole answer's Content-Length promised the other half."""

    async def pieces(ask: Ask) -> AsyncIterator[bytes]:
        async for piece in _half(ask):
            yield piece
        await asyncio.sleep(0.03)  # what was sent arrives by itself, and not together with the end
        async for piece in end():
            yield piece

    def reply(ask: Ask) -> Reply:
        if ask.stream:
            return sse(pieces(ask))
        return Reply(pieces(ask), length=len(json.dumps(whole_object(ask))) if announced else None)

    return reply


async def _error_end(*ends: bytes) -> AsyncIterator[bytes]:
    yield event(STREAM_ERROR)
    for end in ends:
        yield end


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


def sse_error(*ends: bytes) -> Callable[[Ask], Reply]:
    """200, and the error is all there is: an event of the stream, or the object."""
    return lambda ask: sse(_error_end(*ends)) if ask.stream else Reply(json.dumps(STREAM_ERROR).encode())


def _keep_alive(ask: Ask) -> bytes:
    return b": keep-alive\n\n" if ask.stream else b"\n"  # DeepSeek: comments in a stream, blank lines before an object


async def _keep_alives(ask: Ask, until: float) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    while loop.time() < until:
        yield _keep_alive(ask)
        await asyncio.sleep(0.05)


async def _comments_for_ever(ask: Ask) -> AsyncIterator[bytes]:
    async for comment in _keep_alives(ask, float("inf")):
        yield comment


async def _comments_first(ask: Ask) -> AsyncIterator[bytes]:
    """Keep-alives during the latency, then the answer."""
    until = asyncio.get_running_loop().time() + seconds(ask.params.get("latency", "200ms"))
    ask.params["latency"] = "0"
    async for comment in _keep_alives(ask, until):
        yield comment
    async for piece in good_events(ask) if ask.stream else _after_wait(ask, json.dumps(whole_object(ask)).encode()):
        yield piece


def _kind(ask: Ask) -> str:
    return "text/event-stream" if ask.stream else "application/json"


async def _trickle(ask: Ask) -> AsyncIterator[bytes]:
    """A body a few bytes at a time, with `gap` (default 10 ms) between."""
    text = b"".join([piece async for piece in good_events(ask)]) if ask.stream else json.dumps(whole_object(ask)).encode()
    for start in range(0, len(text), 16):
        yield text[start : start + 16]
        await asyncio.sleep(seconds(ask.params.get("gap", "10ms")))


def exits(ask: Ask) -> Reply:
    os._exit(139)  # the whole server, as a model server that crashes


BEHAVIOURS: dict[str, Callable[[Ask], Reply]] = {
    "mock": normal,
    "tools": tools,
    "reasoning": reasoning,
    "logprobs": logprobs,
    # valid dialects
    "crlf": dialect(lambda piece: piece.replace(b"\n", b"\r\n")),
    "comments": dialect(lambda piece: b": keep-alive\n\n" + piece),
    "unknown-fields": dialect(lambda piece: b"event: message\nid: 7\nretry: 3000\nwhatever: x\nbare\n" + piece),
    "no-space": dialect(lambda piece: piece.replace(b"data: ", b"data:", 1)),
    "multi-line-data": dialect(_over_lines),
    "odd-borders": streams_only(_odd_borders),
    "one-segment": streams_only(_one_segment),
    "long-line": streams_only(_long_line),
    "no-done": streams_only(_without_done),
    "llamafile": streams_only(_llamafile),
    "comments-first": lambda ask: Reply(_comments_first(ask), content_type=_kind(ask)),
    "trickle": lambda ask: Reply(_trickle(ask), content_type=_kind(ask)),
    # upstreams that insist
    "only-stream": lambda ask: sse(good_events(ask)),
    "no-stream": whole,
    "refuses-stream-options": _refusing(REFUSES_OPTIONS, lambda ask: "stream_options" in ask.body),
    "refuses-stream": _refusing(REFUSES_STREAM, lambda ask: ask.stream),
    "needs-stream": _refusing(NEEDS_STREAM, lambda ask: not ask.stream),
    # broken
    "never": lambda ask: Reply(_hang()),
    "never-after-headers": lambda ask: Reply(_hang(b""), content_type=_kind(ask)),
    "keep-alives": lambda ask: Reply(_comments_for_ever(ask), content_type=_kind(ask)),
    "reset": lambda ask: Reply(_raise(Reset())),
    "close": lambda ask: Reply(_raise(Cut())),
    "kill": lambda ask: Reply(_raise(Kill())),
    "kill-midstream": half_then(lambda: _raise(Kill()), announced=True),
    "reset-midstream": half_then(lambda: _raise(Reset()), announced=True),
    "close-midstream": half_then(lambda: _raise(Cut()), announced=True),
    "hang-midstream": half_then(_hang, announced=True),
    "cut-midstream": half_then(_nothing),
    "sse-error": sse_error(),
    "sse-error-done": sse_error(DONE),
    "sse-error-midstream": half_then(_error_end),
    "sse-error-midstream-done": half_then(lambda: _error_end(DONE)),
    "html": lambda ask: Reply(b"<html><body>Welcome</body></html>", content_type="text/html"),
    "bad-json": lambda ask: Reply(b'{"id": "chatcmpl-test", "choices": [{"ind', content_type="application/json"),
    "bad-json-event": lambda ask: sse(_pieces(b'data: {"id": "chatcmpl-test", "cho\n\n', DONE)),
    "empty": lambda ask: Reply(b"", content_type=_kind(ask)),
    "exit": exits,
}


async def _pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def reply_to(ask: Ask) -> Reply:
    if ask.name in FAILURES:
        return failure(FAILURES[ask.name], ask)
    return BEHAVIOURS.get(ask.name, normal)(ask)
