"""What nodes send to an endpoint: `POST /res` with a whole answer, `/res/ws` with the frames of streams. Links: links.py.

Either way serves either kind of request: a node that reads only one of `stream` and `endpoint` is understood all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from errors import error_object
from gateway.body import read_body
from gateway.pending import Frame, Pending, Waiter
from gateway.problem import invalid

MAX_ANSWER_BYTES = 16 * 1024 * 1024
_OK = b'{"status":"ok"}'


class Answer(msgspec.Struct):
    """A frame, or the body of a POST. `data` may be missing from the last frame."""

    request_id: str
    data: msgspec.Raw = msgspec.Raw(b"null")
    end: bool = False


class _Error(msgspec.Struct):
    error: Any = None


_answers = msgspec.json.Decoder(Answer)
_errors = msgspec.json.Decoder(_Error)


async def take_post(request: Request, pending: Pending) -> Response:
    """200, or Problem: 400 malformed, 404 where nobody waits for this id, 413."""
    body = await read_body(request, MAX_ANSWER_BYTES)
    try:
        answer = _answers.decode(body)
        frame = read_frame(answer.data, end=True)
        waiter = pending.get(answer.request_id)
        frame = whole_for(waiter, frame) if waiter else frame
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"The answer could not be read: {error}", "invalid_json") from None
    if frame.data is None:
        raise invalid("The answer has no data.", "missing_required_parameter", "data")
    if waiter is None or not pending.deliver(waiter, frame):
        raise invalid("Nobody waits for this request_id: answered already, or gone.", "request_not_found", "request_id", 404)
    return Response(_OK, media_type="application/json")


async def take_frames(websocket: WebSocket, pending: Pending) -> None:
    """Reads one node's socket to its end. Frames of many requests may come; what is for nobody is dropped in silence."""
    await websocket.accept()
    await read_texts(websocket, lambda text: _take_frame(text, pending))


async def read_texts(websocket: WebSocket, take: Callable[[str], None]) -> None:
    """Each text frame, until the other side is gone; others are ignored."""
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        text = message.get("text")
        if text is not None:
            take(text)


def _take_frame(text: str, pending: Pending) -> None:
    try:
        answer = _answers.decode(text)
        waiter = pending.get(answer.request_id)
        if waiter is not None:
            pending.deliver(waiter, read_frame(answer.data, answer.end))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return  # the existing service is as silent, and there is nobody to tell


def read_frame(data: msgspec.Raw, end: bool) -> Frame:
    """An error ends its answer, whether the node says `end` or not. Raises msgspec.DecodeError where an error is unreadable."""
    raw = bytes(data)
    if raw == b"null":
        return Frame(None, end)
    if b'"error"' not in raw or not raw.startswith(b"{"):
        return Frame(raw, end)
    error = _errors.decode(raw).error
    if error is None:
        return Frame(raw, end)
    if not isinstance(error, dict):  # some servers send {"error": "a text"}
        error = error_object(str(error), "server_error")
        raw = msgspec.json.encode({"error": error})
    return Frame(raw, True, error)


def whole_for(waiter: Waiter, frame: Frame) -> Frame:
    """A whole answer in the form that this requester reads. Raises as read_frame does."""
    if frame.data is None or frame.error is not None or not waiter.stream:
        return frame
    return Frame(as_chunk(frame.data), end=True)


def as_chunk(data: bytes) -> bytes:
    """A whole completion as the one chunk of a stream; anything else as it is."""
    completion = msgspec.json.decode(data)
    if not isinstance(completion, dict) or not isinstance(completion.get("choices"), list):
        return data
    choices = [_as_delta(choice) if isinstance(choice, dict) else choice for choice in completion["choices"]]
    return msgspec.json.encode(completion | {"object": "chat.completion.chunk", "choices": choices})


def _as_delta(choice: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(choice.get("message"), dict):
        return choice
    rest = {name: value for name, value in choice.items() if name != "message"}
    delta = dict(choice["message"])
    if isinstance(delta.get("tool_calls"), list):  # chunks number their tool calls, completions do not
        delta["tool_calls"] = [{"index": i} | call for i, call in enumerate(delta["tool_calls"]) if isinstance(call, dict)]
    return rest | {"delta": delta}
