"""One request's answer on its way: its frames or its one object, in the wire contract's form (docs/api.md)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from answers.address import Address
from answers.allowed import Allowed
from answers.dial import Dialer
from answers.endpoint import NotAllowed, NotDelivered, NoWebSocket, RequesterGone
from answers.links import Links
from answers.overlink import LinkDelivery
from answers.pool import SocketPool
from answers.post import Poster
from answers.run import Run
from answers.websocket import WebSocket

# The existing service drops frames for ids that it has not registered yet; it was seen to register up to 77 ms late.
FIRST_FRAME_AFTER_S = 0.1


def _nobody_is_cancelled(request_id: str) -> None:
    return


class Couriers:
    """A child's connections to requesters' services. `cancelled`: told by links which ids nobody waits for any more."""

    def __init__(
        self, most_rested: int, ca_bundle: str | None, cancelled: Callable[[str], None] = _nobody_is_cancelled,
        allowed: Allowed | None = None,
    ) -> None:
        self.dialer = Dialer(ca_bundle, allowed)
        self.poster = Poster(most_rested, self.dialer)
        self.sockets = SocketPool(self.dialer)
        self.links = Links(self.dialer, cancelled)


class Delivery(Protocol):
    """A sink (backends/base.py), and what its worker does with it. is_fenced: should this process die before its end is
    confirmed, whoever takes over learns whether the requester has it."""

    is_fenced: bool

    def put(self, data: bytes) -> bool: ...
    async def chunk(self, data: bytes) -> None: ...
    def whole(self, data: bytes) -> None: ...
    def fail(self, error: dict[str, Any]) -> None:
        """What `finish` delivers is this error, or ends with it."""

    @property
    def answer(self) -> bytes:
        """What is not delivered yet."""

    async def finish(self) -> None:
        """Raises RequesterGone, RequesterUnknown, AnotherAnswers, NodeStopped, NotDelivered; may be called again after
        NotDelivered."""

    async def await_reply(self) -> None:
        """Where it may not be wanted: before anything is computed. Raises RequesterGone, AnotherAnswers."""

    async def cut(self, error: dict[str, Any]) -> None:
        """This process ends: say so where the requester has seen a part. Raises what `finish` raises."""

    def abandon(self) -> None:
        """At its end, whatever that was."""


class WholeDelivery:
    """A sink for one whole answer: kept until `finish`, as the computing is over by then."""

    is_fenced = False

    def __init__(self, address: Address, couriers: Couriers, run: Run) -> None:
        self._address, self._couriers, self._run = address, couriers, run
        self._data = b""

    def put(self, data: bytes) -> bool:
        return False

    async def chunk(self, data: bytes) -> None:
        raise AssertionError("a whole answer has no chunks")

    def whole(self, data: bytes) -> None:
        self._data = data

    def fail(self, error: dict[str, Any]) -> None:
        self._data = msgspec.json.encode({"error": error})

    @property
    def answer(self) -> bytes:
        return self._data

    async def finish(self) -> None:
        """Raises RequesterUnknown, NotDelivered, NodeStopped; may be called again after NotDelivered."""
        identifier = msgspec.json.encode(self._address.request_id)
        body = b'{"request_id":' + identifier + b',"data":' + self._data + b"}"
        await self._run.check()
        await self._couriers.poster.post(self._address.endpoint, body, early_until_s=self._address.early_until_s)

    async def await_reply(self) -> None:
        return

    async def cut(self, error: dict[str, Any]) -> None:
        return

    def abandon(self) -> None:
        return


class StreamDelivery:
    """A sink for chunks, each sent when it comes. Where the endpoint cannot be reached at the first chunk, they are
    kept instead, and `finish` tries to deliver them all: what was computed is not computed again."""

    is_fenced = False

    def __init__(self, address: Address, couriers: Couriers, run: Run) -> None:
        self._address, self._couriers, self._run = address, couriers, run
        identifier = msgspec.json.encode(address.request_id)
        self._head = b'{"request_id":' + identifier + b',"end":false,"data":'
        self._last = b'{"request_id":' + identifier + b',"end":true}'
        self._failed_head = b'{"request_id":' + identifier + b',"end":true,"data":'
        self._socket: WebSocket | None = None
        self._kept: list[bytes] = []
        self._keeping = False

    def put(self, data: bytes) -> bool:
        return False

    async def chunk(self, data: bytes) -> None:
        await self._send(self._head + data + b"}")

    def whole(self, data: bytes) -> None:
        raise AssertionError("a stream has no whole answer")

    def fail(self, error: dict[str, Any]) -> None:
        """The last frame will carry the error."""
        self._last = self._failed_head + msgspec.json.encode({"error": error}) + b"}"

    @property
    def answer(self) -> bytes:
        return b"\n".join([*self._kept, self._last])

    async def finish(self) -> None:
        """The end frame, and the pong that proves that all was taken. Raises RequesterGone, NotDelivered."""
        if self._socket is None:
            await self._open()
            await self._send_kept()
        await self._run.check()
        await self._end()

    async def _send_kept(self) -> None:
        kept, self._kept = self._kept, []
        for frame in kept:
            await self._write(frame)

    async def _end(self) -> None:
        await self._write(self._last)
        assert self._socket is not None
        try:
            await self._socket.confirm()
        except OSError as error:
            raise RequesterGone(str(error)) from None
        self._couriers.sockets.give_back(self._address.endpoint, self._socket)
        self._socket = None

    async def await_reply(self) -> None:
        return

    async def cut(self, error: dict[str, Any]) -> None:
        if self._socket is None:
            raise NotDelivered("nothing was said yet")
        self.fail(error)
        await self._end()

    def abandon(self) -> None:
        """After any failure: a socket in the middle of a stream is of no use to another."""
        if self._socket is not None:
            self._couriers.sockets.abandon(self._socket)
            self._socket = None

    async def _send(self, frame: bytes) -> None:
        await self._run.check()
        if self._socket is None and not self._keeping:
            try:
                await self._open()
            except NotAllowed:
                raise  # however long it is kept
            except NotDelivered:
                self._keeping = True
        if self._keeping:
            self._kept.append(frame)
        else:
            await self._write(frame)

    async def _open(self) -> None:
        """Raises NotDelivered. From here on the requester may have seen something."""
        self._socket = await self._couriers.sockets.borrow(self._address.endpoint, lambda why: self._run.end(RequesterGone(why)))
        wait_s = self._address.received_at_s + FIRST_FRAME_AFTER_S - time.monotonic()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        await self._run.begin()

    async def _write(self, frame: bytes) -> None:
        assert self._socket is not None
        try:
            await self._socket.send(frame)
        except OSError as error:
            raise RequesterGone(str(error)) from None


async def delivery(address: Address, couriers: Couriers, run: Run, *, insists: bool = False) -> Delivery:
    """Over the link where one is offered and there, which it is asked for at once; else to the endpoint.
    insists: it is a refusal, which `busy` need not end. Raises NotAllowed."""
    if address.link:
        way = LinkDelivery(address, couriers.links, run, insists=insists)
        try:
            await way.ask()
            return way
        except NoWebSocket:
            pass
    couriers.dialer.check(address.endpoint)
    return StreamDelivery(address, couriers, run) if address.stream else WholeDelivery(address, couriers, run)
