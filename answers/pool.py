"""Streams to the existing service: WebSockets, one stream at a time on each, rested in between."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable

from answers.dial import Dialer
from answers.endpoint import NotDelivered, websocket_url
from answers.websocket import LATE_S, WebSocket, open_socket

IDLE_KEPT_S = 10.0  # below the 20 s after which common servers give up on a silent client
LOOK_EACH_S = 1.0  # below those 20 s too, within which their pings want a pong
GONE_AFTER_S = 5.0  # without a pong: the service's reader stops for good on a requester that left


def _tell_nobody(why: str) -> None:
    return


class SocketPool:
    """Rested sockets by endpoint; those that are lent are looked after."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._rested: dict[str, list[WebSocket]] = defaultdict(list)
        self._lent: dict[WebSocket, Callable[[str], None]] = {}
        self._look_due_s: float | None = None

    async def borrow(self, endpoint: str, gone: Callable[[str], None] = _tell_nobody) -> WebSocket:
        """A socket for one stream. `gone` is called where the other side closes it or reads no more. Raises Refused,
        NotDelivered."""
        try:
            url = websocket_url(endpoint)
        except ValueError as error:
            raise NotDelivered(f"{endpoint!r}: {error}") from None
        found = self._take_rested(url) or await open_socket(url, self._dialer)
        self._lent[found] = gone
        found.lost = lambda: self._on_lost(found)
        if not found.is_open:  # between its handshake and now
            self._on_lost(found)
        self._look_later()
        return found

    def give_back(self, endpoint: str, used: WebSocket) -> None:
        """Only after its pong: a socket whose reader is stuck on a requester that left would hold the next stream too."""
        used.rested_since_s = time.monotonic()
        self._lent.pop(used, None)
        self._rested[websocket_url(endpoint)].append(used)

    def abandon(self, used: WebSocket) -> None:
        self._lent.pop(used, None)
        used.abandon()

    def _take_rested(self, url: str) -> WebSocket | None:
        rested = self._rested.get(url, [])
        while rested:
            found = rested.pop()
            if found.is_open and time.monotonic() - found.rested_since_s <= IDLE_KEPT_S:
                return found
            found.abandon()
        return None

    def _on_lost(self, used: WebSocket) -> None:
        if (gone := self._lent.pop(used, None)) is not None:
            gone("the other side closed the WebSocket")

    def _look_later(self) -> None:
        if self._look_due_s is None:
            self._look_due_s = time.monotonic() + LOOK_EACH_S
            asyncio.get_running_loop().call_later(LOOK_EACH_S, self._look)

    def _look(self) -> None:
        """Does anybody still read? And nobody else closes what nobody borrows."""
        assert self._look_due_s is not None
        is_late = time.monotonic() - self._look_due_s > LATE_S
        self._look_due_s = None
        for used, gone in [] if is_late else list(self._lent.items()):
            used.ping_if_due()
            if used.silent_for_s() > GONE_AFTER_S:
                gone(f"no pong within {GONE_AFTER_S:g} s")
        self._close_stale(time.monotonic() - IDLE_KEPT_S)
        if self._lent or self._rested:
            self._look_later()

    def _close_stale(self, before_s: float) -> None:
        for url, sockets in list(self._rested.items()):
            kept = [rested for rested in sockets if rested.rested_since_s >= before_s]
            for stale in sockets:
                if stale.rested_since_s < before_s:
                    stale.close()
            self._rested[url] = kept
            if not kept:
                del self._rested[url]
