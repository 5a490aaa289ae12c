"""Links: one WebSocket for each pair of child and gateway (docs/api.md), with many answers on it at once.

Nothing here waits for a requester, nor for a node that does not read: a reader that only puts into mailboxes, and one
bounded queue and one writer for what the node is told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import msgspec
from loguru import logger
from starlette.websockets import WebSocket, WebSocketDisconnect

from gateway.nodes import Answer, read_frame, read_texts, whole_for
from gateway.pending import Frame, Pending, Waiter
from gateway.problem import bad_answer, node_lost

if TYPE_CHECKING:
    from gateway.keepalive import NodeSocket

PATH = "/res/link"
MAX_UNREAD_FRAMES = 10_000


class _FromNode(Answer):
    """A frame of an answer, which has no type, or `begin`."""

    type: str = ""
    attempt: int = 0


class _ToNode(msgspec.Struct, omit_defaults=True):
    type: Literal["go", "gone", "busy", "taken", "cancel"]
    request_id: str
    attempt: int | None = None


_UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)
_decoder = msgspec.json.Decoder(_FromNode)
_encoder = msgspec.json.Encoder()


async def serve_link(websocket: WebSocket, pending: Pending) -> None:
    """Serves one node's link to its end, which takes what it had begun along."""
    await websocket.accept()
    socket: NodeSocket = websocket.scope["state"]["socket"]
    link = NodeLink(pending, websocket.scope["state"]["transport"].abort, socket.say)
    socket.take = link.take
    pending.links.add(link)
    writer = asyncio.create_task(link.write_to(websocket))
    try:
        await read_texts(websocket, lambda text: link.take(text.encode()))  # to its end; frames take the short way
    finally:
        writer.cancel()
        pending.release(link, node_lost().frame())


class NodeLink:
    """One node's link. abort: closes its connection without waiting for what is unsent; say: sends one frame if that can be
    done at once."""

    def __init__(self, pending: Pending, abort: Callable[[], None], say: Callable[[bytes], bool]) -> None:
        self._pending, self._abort, self._say = pending, abort, say
        self._unsent: asyncio.Queue[bytes] = asyncio.Queue()
        self._sending = self._aborted = self._ignored = False

    async def write_to(self, websocket: WebSocket) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # it is closed already, which its reader learns by itself
            while True:
                text = await self._unsent.get()
                self._sending = True  # for longer than an instant only where the node does not read
                await websocket.send_text(text.decode())
                self._sending = False

    def take(self, text: bytes) -> None:
        """Frames from the node, one a line. Never waits, and never raises for what a node may send."""
        for line in text.split(b"\n"):
            self._take_frame(line)

    def _take_frame(self, line: bytes) -> None:
        try:
            frame = _decoder.decode(line)
        except _UNREADABLE as error:
            self._ignore(str(error))
            return
        if not frame.type:
            self._answer(frame)
        elif frame.type == "begin":
            self._tell(_ToNode(self._pending.begin(frame.request_id, frame.attempt, self), frame.request_id, frame.attempt))
        else:
            self._ignore("of no known type")

    def _answer(self, answer: _FromNode) -> None:
        waiter = self._pending.get(answer.request_id)
        ended, taken = answer.end, False
        if waiter is not None and waiter.link is self:
            frame = _read(answer, waiter)
            ended, taken = frame.end, self._pending.deliver(waiter, frame, self)
        if ended:
            self._tell(_ToNode("taken" if taken else "gone", answer.request_id))

    def cancel(self, request_id: str) -> None:
        self._tell(_ToNode("cancel", request_id))

    def lose(self, request_id: str, attempt: int) -> None:
        self._tell(_ToNode("busy", request_id, attempt))

    def _tell(self, reply: _ToNode) -> None:
        text = _encoder.encode(reply)
        if not self._sending and self._unsent.empty() and self._say(text):
            return
        if self._sending and self._unsent.qsize() >= MAX_UNREAD_FRAMES:
            self._give_up()
        else:  # any number at once, as when a proxy takes all its requesters along, is no fault of the node
            self._unsent.put_nowait(text)

    def _give_up(self) -> None:
        if not self._aborted:
            self._aborted = True
            logger.warning("a node left {} frames on its link unread: the link is closed", MAX_UNREAD_FRAMES)
            self._abort()

    def _ignore(self, why: str) -> None:
        """Told once a link: a node that is of another mind says the same again with every request."""
        if not self._ignored:
            self._ignored = True
            logger.debug("a frame on a link is ignored, as others like it will be: {}", why)


def _read(answer: _FromNode, waiter: Waiter) -> Frame:
    """An end frame before any output is a whole answer. One that cannot be read ends the request, as nothing better will come."""
    try:
        frame = read_frame(answer.data, answer.end)
        return whole_for(waiter, frame) if frame.end and not waiter.has_output else frame
    except _UNREADABLE:
        return bad_answer("The node's answer could not be read.").frame()
