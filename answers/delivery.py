"""One request's answer on its way: its frames or its one object, in the wire contract's form (docs/wire.md)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from answers.endpoint import NotDelivered, RequesterGone
from answers.post import EARLY_GRACE_S, Poster
from answers.websocket import FrameSocket, SocketPool

# The existing service drops frames for ids that it has not registered yet; it was seen to register up to 77 ms late.
FIRST_FRAME_AFTER_S = 0.1


@dataclass(frozen=True)
class Address:
    """Where an answer goes. Times are monotonic seconds."""

    request_id: str
    stream: bool
    endpoint: str
    received_at_s: float
    deadline_at_s: float
    first_attempt: bool

    @property
    def early_until_s(self) -> float:
        return self.received_at_s + EARLY_GRACE_S if self.first_attempt else 0.0


class Couriers:
    """A child's connections to requesters' services."""

    def __init__(self, threads: int, ca_bundle: str | None) -> None:
        self.poster = Poster(threads, ca_bundle)
        self.sockets = SocketPool(ca_bundle)


class WholeDelivery:
    """A sink for one whole answer: kept until `finish`, as the computing is over by then."""

    def __init__(self, address: Address, couriers: Couriers) -> None:
        self._address, self._couriers = address, couriers
        self._data = b""
        self.begun = False

    def chunk(self, data: bytes) -> None:
        raise AssertionError("a whole answer has no chunks")

    def whole(self, data: bytes) -> None:
        self._data = data

    def fail(self, error: dict[str, Any]) -> None:
        self._data = msgspec.json.encode({"error": error})

    @property
    def answer(self) -> bytes:
        return self._data

    def finish(self) -> None:
        """Raises RequesterUnknown, NotDelivered; may be called again after NotDelivered."""
        identifier = msgspec.json.encode(self._address.request_id)
        body = b'{"request_id":' + identifier + b',"data":' + self._data + b"}"
        self._couriers.poster.post(self._address.endpoint, body, early_until_s=self._address.early_until_s)

    def abandon(self) -> None:
        return


class StreamDelivery:
    """A sink for chunks, each sent when it comes. Where the endpoint cannot be reached at the first chunk, they are
    kept instead, and `finish` tries to deliver them all: what was computed is not computed again."""

    def __init__(self, address: Address, couriers: Couriers, about_to_begin: Callable[[], None]) -> None:
        self._address, self._couriers = address, couriers
        self._about_to_begin = about_to_begin
        identifier = msgspec.json.encode(address.request_id)
        self._head = b'{"request_id":' + identifier + b',"end":false,"data":'
        self._last = b'{"request_id":' + identifier + b',"end":true}'
        self._failed_head = b'{"request_id":' + identifier + b',"end":true,"data":'
        self._socket: FrameSocket | None = None
        self._kept: list[bytes] = []
        self._keeping = False
        self.begun = False

    def chunk(self, data: bytes) -> None:
        self._send(self._head + data + b"}")

    def whole(self, data: bytes) -> None:
        raise AssertionError("a stream has no whole answer")

    def fail(self, error: dict[str, Any]) -> None:
        """The last frame will carry the error."""
        self._last = self._failed_head + msgspec.json.encode({"error": error}) + b"}"

    @property
    def answer(self) -> bytes:
        return b"\n".join([*self._kept, self._last])

    def finish(self) -> None:
        """The end frame, and the pong that proves that all was taken. Raises RequesterGone, NotDelivered."""
        if self._socket is None:
            kept, self._kept = self._kept, []
            try:
                self._open()
            except NotDelivered:
                self._kept = kept
                raise
            for frame in kept:
                self._write(frame)
        self._write(self._last)
        assert self._socket is not None
        try:
            self._socket.confirm()
        except OSError as error:
            raise RequesterGone(str(error)) from None
        self._couriers.sockets.give_back(self._address.endpoint, self._socket)
        self._socket = None

    def abandon(self) -> None:
        """After any failure: a socket in the middle of a stream is of no use to another."""
        if self._socket is not None:
            self._couriers.sockets.abandon(self._socket)
            self._socket = None

    def _send(self, frame: bytes) -> None:
        if self._socket is None and not self._keeping:
            try:
                self._open()
            except NotDelivered:
                self._keeping = True
        if self._keeping:
            self._kept.append(frame)
        else:
            self._write(frame)

    def _open(self) -> None:
        """Raises NotDelivered. From here on the requester may have seen something."""
        self._socket = self._couriers.sockets.borrow(self._address.endpoint)
        wait_s = self._address.received_at_s + FIRST_FRAME_AFTER_S - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        if not self.begun:
            self._about_to_begin()
            self.begun = True

    def _write(self, frame: bytes) -> None:
        assert self._socket is not None
        try:
            self._socket.send(frame)
        except OSError as error:
            raise RequesterGone(str(error)) from None


Delivery = WholeDelivery | StreamDelivery


def delivery(address: Address, couriers: Couriers, about_to_begin: Callable[[], None]) -> Delivery:
    """`about_to_begin` is called once, before the first frame of a stream goes out."""
    return StreamDelivery(address, couriers, about_to_begin) if address.stream else WholeDelivery(address, couriers)
