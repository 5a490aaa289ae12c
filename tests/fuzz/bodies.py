"""What an upstream might say: completions, streams and errors, good ones and ones with something wrong in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from errors import Scope
from ipc.messages import End
from tests.fuzz.values import SPELLINGS, damaged, mutated, odd, written
from tests.unit.vendor_errors import ROWS

DONE = b"data: [DONE]\n\n"
_ENDS: dict[Scope, End] = {Scope.REQUEST: "failed", Scope.RETRY: "retry", Scope.THROTTLE: "throttle", Scope.NODE: "trouble"}
# Words by which a refusal of the request's form is known, after which it is asked again in another form.
_HABITS = ("stream", "include_usage")


@dataclass(frozen=True)
class Said:
    """end: what must come of it where nothing is wrong with it, None where that cannot be told; text: then what the
    requester must read."""

    status: int
    kind: str
    body: bytes
    end: End | None = None
    text: str | None = None


def completion(rng: Random, text: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if rng.random() < 0.2:
        message["tool_calls"] = [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]
    if rng.random() < 0.1:
        message["reasoning_content"] = "I think"
    choices = [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}


def events(rng: Random, text: str) -> list[dict[str, Any]]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, *({"content": word + " "} for word in text.split())]
    if rng.random() < 0.2:
        deltas += [{"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]},
                   {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}]  # fmt: skip
    found = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    found.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if rng.random() < 0.6:
        found.append({**head, "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}})
    return found


def _stream(found: list[Any], *, done: bool = True) -> bytes:
    return b"".join(b"data: " + written(event) + b"\n\n" for event in found) + DONE * done


def good(rng: Random, text: str) -> Said:
    if rng.random() < 0.4:
        return Said(200, "application/json", written(completion(rng, text), spaced=rng.random() < 0.2), "answered", text)
    body = _dialect(rng, _stream(events(rng, text), done=rng.random() < 0.8))
    return Said(200, "text/event-stream; charset=utf-8", body, "answered", text)


def _dialect(rng: Random, body: bytes) -> bytes:
    """Valid all of them."""
    return rng.choice((
        lambda: body, lambda: body, lambda: body.replace(b"\n", b"\r\n"), lambda: body.replace(b"\n", b"\r"),
        lambda: b"\xef\xbb\xbf" + body, lambda: b": hello\n\n" + body.replace(b"\n\n", b"\n\n: keep-alive\n\n"),
        lambda: body.replace(b"data: ", b"data:"), lambda: body.replace(b"data: ", b"event: message\nid: 7\nretry: 5\ndata: "),
    ))()  # fmt: skip


def cut(rng: Random, text: str) -> Said:
    """In the right form, and only the beginning: what is `failed` for who has seen a part may be tried again for others."""
    found = [event for event in events(rng, text) if event["choices"] and not event["choices"][0]["finish_reason"]]
    body = _dialect(rng, _stream(found[: rng.randrange(1, len(found) + 1)], done=False))
    return Said(200, "text/event-stream", body, "failed")


def error(rng: Random, text: str) -> Said:
    """A vendor's own, as it is."""
    row = rng.choice(ROWS)
    if row.status is None:
        body, status, kind = _stream([row.body], done=rng.random() < 0.5), 200, "text/event-stream"
    else:
        body, status, kind = row.bytes, row.status, rng.choice(("application/json", "text/plain", "text/html"))
    asked_again = any(word in str(row.body).lower() for word in _HABITS)
    return Said(status, kind, body, None if asked_again else _ENDS[row.scope])


def odd_error(rng: Random, text: str) -> Said:
    row = rng.choice(ROWS)
    found = row.body if isinstance(row.body, dict | list) else {"error": {"message": "m", "type": "t", "param": None, "code": None}}
    body = written(_mutated_often(rng, found))
    status = rng.choice((row.status or 500, rng.randrange(201, 600), rng.choice((401, 403, 404, 429, 500))))
    return Said(status, rng.choice(("application/json", "text/event-stream", "text/html", "")), _maybe_damaged(rng, body))


def odd_whole(rng: Random, text: str) -> Said:
    body = written(_mutated_often(rng, completion(rng, text)), spaced=rng.random() < 0.2)
    return Said(200, rng.choice(("application/json", "application/json", "text/plain", "text/event-stream", "")), _maybe_damaged(rng, body))


def odd_stream(rng: Random, text: str) -> Said:
    found: list[Any] = events(rng, text)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _EVENT_CHANGES[rng.randrange(len(_EVENT_CHANGES))](rng, found)
    body = _dialect(rng, _stream(found, done=rng.random() < 0.7))
    if rng.random() < 0.15:
        body = body.replace(b"\n\n", rng.choice((b"\n", b"\n\n\n", b"\n\ndata:\n\n", b"\n\ndata: [DONE]\n\n", b"\ndata: \n\n")))
    return Said(200, rng.choice(("text/event-stream",) * 5 + ("application/json",)), _maybe_damaged(rng, body))


def _mutate_event(rng: Random, found: list[Any]) -> None:
    at = rng.randrange(len(found))
    found[at] = mutated(rng, found[at])


def _drop_event(rng: Random, found: list[Any]) -> None:
    if len(found) > 1:
        del found[rng.randrange(len(found))]


def _double_event(rng: Random, found: list[Any]) -> None:
    found.insert(rng.randrange(len(found) + 1), rng.choice(found))


def _put_error(rng: Random, found: list[Any]) -> None:
    body = rng.choice(ROWS).body
    found.insert(rng.randrange(len(found) + 1), body if rng.random() < 0.5 else mutated(rng, body))


def _put_odd(rng: Random, found: list[Any]) -> None:
    found.insert(rng.randrange(len(found) + 1), odd(rng))


def _cut(rng: Random, found: list[Any]) -> None:
    del found[max(1, rng.randrange(len(found))) :]


def _shuffle(rng: Random, found: list[Any]) -> None:
    rng.shuffle(found)


_EVENT_CHANGES: list[Callable[[Random, list[Any]], None]] = [
    _mutate_event, _mutate_event, _mutate_event, _drop_event, _double_event, _put_error, _put_odd, _cut, _shuffle,
]  # fmt: skip


def rubbish(rng: Random, text: str) -> Said:
    body = rng.choice((
        b"", b"\n" * 50, b"<html><body>" + b"hello " * 50 + b"</body></html>", rng.randbytes(300), rng.choice(SPELLINGS), b"data: " * 20,
        b"[DONE]", DONE, b": only comments\n\n" * 20, b"x" * 300_000, b"data: " + b"x" * 300_000, b"event: error\ndata: oops\n\n", b"ok",
        b"{}", b'{"choices":[]}', b'{"choices":[{}]}', b'data: {"choices":[{}]}\n\n' + DONE, b'data: {"choices":null}\n\n' + DONE,
        b'{"object":"error","message":"m","code":400}',
    ))  # fmt: skip
    status = rng.choice((200, 200, 200, 201, 204, 206, 301, 304, 400, 418, 500, 503, 599))
    return Said(status, rng.choice(("application/json", "text/event-stream", "text/html", "application/octet-stream", "")), body)


def _mutated_often(rng: Random, value: Any) -> Any:
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = mutated(rng, value)
    return value


def _maybe_damaged(rng: Random, body: bytes) -> bytes:
    return damaged(rng, body) if rng.random() < 0.15 else body
