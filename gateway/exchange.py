"""One requester: registered, published, answered. Freed at once when it hangs up."""

from __future__ import annotations

import asyncio
import dataclasses
import math

import msgspec
from loguru import logger
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl

from errors import http_status
from gateway import links
from gateway.body import Room
from gateway.connections import HEAD_WITHIN_S, HttpConnection
from gateway.keys import Keys
from gateway.models import Models
from gateway.pending import DEFAULT_BUFFER_BYTES, Frame, Pending, RequesterGone, Waiter
from gateway.problem import Problem, bad_answer, timeout, too_large, unavailable
from gateway.publisher import MAX_MESSAGE_BYTES, MessageTooBig, Publisher, PublishFailed

FULL_RETRY_AFTER_S = 5
LONGEST_RETRY_AFTER_S = 60  # clients do not believe much more
_DONE = b"data: [DONE]\n\n"
_KEEP_ALIVE = b": keep-alive\n\n"


@dataclasses.dataclass
class Gateway:
    """What all requests share. answer_url: `http://host:port`, where nodes reach this gateway; times in seconds.
    max_pending: so many requests wait at once; keys: None where nobody needs one."""

    publisher: Publisher
    models: Models
    answer_url: str
    timeout_s: float
    keep_alive_s: float = 30.0
    buffer_limit_bytes: int = DEFAULT_BUFFER_BYTES
    max_pending: int = 4096
    head_within_s: float = HEAD_WITHIN_S
    keys: Keys | None = None
    bodies: Room = dataclasses.field(default_factory=Room)
    draining: bool = False
    pending: Pending = dataclasses.field(default_factory=Pending)

    def endpoint(self, stream: bool) -> str:
        """Where a node sends the answer that knows no links."""
        if stream:
            return self.answer_url.replace("http", "ws", 1) + "/res/ws"
        return self.answer_url + "/res"

    def refuse_if_full(self) -> None:
        """Before a body is read. Raises Problem."""
        if self.draining:
            raise unavailable("The gateway is shutting down: try again.", "shutting_down")
        if len(self.pending) >= self.max_pending:
            words = f"{self.max_pending:,} requests wait at this gateway already, as many as it takes."
            raise unavailable(words, "server_is_overloaded", retry_after_s=FULL_RETRY_AFTER_S)

    def refuse_if_hopeless(self, model: str) -> None:
        """Raises Problem where the answer would come after this gateway has stopped to wait for it."""
        wait_s = self.pending.wait_s(model)
        if wait_s is not None and wait_s > self.timeout_s:
            words = f"So many requests wait for this model that another would not be answered within {self.timeout_s:g} s."
            later_s = min(max(math.ceil(wait_s - self.timeout_s), 1), LONGEST_RETRY_AFTER_S)
            raise unavailable(words, "server_is_overloaded", retry_after_s=later_s)

    @property
    def link(self) -> str:
        """Where a node opens its link."""
        return self.answer_url.replace("http", "ws", 1) + links.PATH


class Exchange(Response):
    """A response that is not known yet: the request goes out when the server runs it.

    payload: the message for the queue, encoded.
    """

    def __init__(self, gateway: Gateway, model: str, request_id: str, stream: bool, payload: bytes) -> None:
        super().__init__()
        self._gateway, self._model, self._payload = gateway, model, payload
        self._request_id, self._stream = request_id, stream
        self._has_started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection: HttpConnection = scope["state"]["connection"]
        transport = scope["state"]["transport"]
        if transport.is_closing():
            await self._end_for_nobody(scope, receive, send)
            return
        waiter = Waiter(self._request_id, self._stream, transport.abort, self._gateway.buffer_limit_bytes, self._model)
        # Before the publish: a fast node answers before the queue has confirmed.
        self._gateway.pending.add(waiter)
        connection.lost = lambda: self._gateway.pending.remove(waiter)
        connection.flow.resume_reading()  # paused for a long body: nothing else would tell that the requester left
        try:
            await self._answer(waiter, scope, receive, send)
        except RequesterGone:
            logger.debug("request {} for {}: the requester has gone", self._request_id, self._model)
            await self._end_for_nobody(scope, receive, send)
        finally:
            connection.lost = None
            self._gateway.pending.remove(waiter)

    async def _end_for_nobody(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The server takes no notice of it, but of a request without any response: of several that came at once it knows of the
        last only that its requester left."""
        if not self._has_started:
            await Response(status_code=400)(scope, receive, send)

    async def _answer(self, waiter: Waiter, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._publish()
            frames = await waiter.take(self._gateway.timeout_s)
            if self._stream and frames[0].error is None:
                await self._send_stream(waiter, frames, scope["state"]["connection"].flow, send)
                return
            response = self._whole(await self._to_the_end(waiter, frames))
        except Problem as problem:
            response = problem.response()
        except TimeoutError:
            response = timeout(f"No answer came within {self._gateway.timeout_s:g} s.").response()
        response.headers["X-Request-Id"] = self._request_id
        await response(scope, receive, send)

    async def _publish(self) -> None:
        try:
            await self._gateway.publisher.publish(self._model, self._payload)
        except MessageTooBig:
            raise too_large("The request", MAX_MESSAGE_BYTES) from None
        except PublishFailed as failure:
            raise unavailable(f"The message queue did not take the request: {failure}", "queue_unavailable") from None
        finally:
            self._payload = b""  # may be megabytes, and the answer may be minutes away

    async def _to_the_end(self, waiter: Waiter, frames: list[Frame]) -> list[Frame]:
        while not frames[-1].end:
            frames += await waiter.take(self._gateway.timeout_s)
        return [frame for frame in frames if frame.data is not None]

    def _whole(self, frames: list[Frame]) -> Response:
        """A node that sends its whole answer as a frame is understood; one that streams to a requester who did not ask is not."""
        failed = [frame for frame in frames if frame.error is not None]
        if not failed and len(frames) != 1:
            raise bad_answer(f"The node sent {len(frames)} pieces where one whole answer was asked for.")
        frame = (failed or frames)[0]
        if frame.error is None:
            self._gateway.models.saw(self._model)
        status = 200 if frame.error is None else http_status(frame.error)
        return Response(frame.data, status, media_type="application/json")

    async def _send_stream(self, waiter: Waiter, frames: list[Frame], flow: FlowControl, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),  # nginx would hold the stream back
            (b"x-request-id", self._request_id.encode()),
        ]
        self._gateway.models.saw(self._model)
        self._has_started = True
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        waiter.relay = lambda frame: not flow.write_paused and _sent_at_once(send, as_events(frame))
        while True:
            await send({"type": "http.response.body", "body": b"".join(map(as_events, frames)), "more_body": not frames[-1].end})
            if frames[-1].end:
                return
            frames = await self._next(waiter, send)

    async def _next(self, waiter: Waiter, send: Send) -> list[Frame]:
        """The next frames; an error where none come for `timeout_s`. A comment each `keep_alive_s` holds proxies open."""
        now_s = asyncio.get_running_loop().time
        began_s = commented_s = now_s()
        while (left_s := max(began_s, waiter.relayed_at_s) + self._gateway.timeout_s - now_s()) > 0:
            quiet_until_s = max(commented_s, waiter.relayed_at_s) + self._gateway.keep_alive_s
            try:
                return await waiter.take(max(0.0, min(left_s, quiet_until_s - now_s())))
            except TimeoutError:
                pass
            if now_s() >= max(commented_s, waiter.relayed_at_s) + self._gateway.keep_alive_s:
                await send({"type": "http.response.body", "body": _KEEP_ALIVE, "more_body": True})
                commented_s = now_s()
        return [timeout(f"The stream was silent for {self._gateway.timeout_s:g} s.").frame()]


def _sent_at_once(send: Send, events: bytes) -> bool:
    """Without a task: where writing is not paused, the server's `send` waits for nothing."""
    sending = send({"type": "http.response.body", "body": events, "more_body": True})
    try:
        sending.send(None)  # type: ignore[attr-defined]  # a coroutine, as the server's and any middleware's are
    except StopIteration:
        return True
    raise RuntimeError("the server waits though its connection takes more")


def as_events(frame: Frame) -> bytes:
    """A frame as server-sent events; an error ends the stream without `[DONE]`, as OpenAI's does."""
    data = frame.data
    if data is not None and (b"\n" in data or b"\r" in data):  # a line break would end the event in the middle of its JSON
        data = msgspec.json.format(data, indent=-1)
    event = b"" if data is None else b"data: " + data + b"\n\n"
    return event + _DONE if frame.end and frame.error is None else event
