"""Streams to the existing service: WebSockets, one stream at a time on each, rested in between."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable

from answers.dial import Dialer
from answers.endpoint import NotDelivered, websocket_url
from answers.websocket import FrameSocket

IDLE_KEPT_S = 10.0  # below the 20 s after which common servers give up on a silent client
LOOK_EACH_S = 1.0  # below those 20 s too, within which their pings want a pong
GONE_AFTER_S = 5.0  # without a pong: the service's reader stops for good on a requester that left


def _tell_nobody(why: str) -> None:
    return


class SocketPool:
    """Rested sockets by endpoint, and a thread that looks after all. Thread-safe."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._idle: dict[str, list[FrameSocket]] = defaultdict(list)
        self._lent: dict[FrameSocket, Callable[[str], None]] = {}
        self._lock = threading.Lock()
        self._is_looked_after = False

    def borrow(self, endpoint: str, gone: Callable[[str], None] = _tell_nobody) -> FrameSocket:
        """A socket for one stream. `gone` is called, by another thread, where the other side closes it or reads no more.
        Raises Refused, NotDelivered."""
        try:
            url = websocket_url(endpoint)
        except ValueError as error:
            raise NotDelivered(f"{endpoint!r}: {error}") from None
        found = self._rested(url) or FrameSocket(url, self._dialer)
        with self._lock:
            self._lent[found] = gone
            if not self._is_looked_after:
                self._is_looked_after = True
                threading.Thread(target=self._look_after, name="sockets", daemon=True).start()
        return found

    def _rested(self, url: str) -> FrameSocket | None:
        while rested := self._take(url):
            if time.monotonic() - rested.idle_since_s <= IDLE_KEPT_S and rested.look():
                return rested
            rested.abandon()
        return None

    def _take(self, url: str) -> FrameSocket | None:
        with self._lock:
            sockets = self._idle.get(url)
            return sockets.pop() if sockets else None

    def give_back(self, endpoint: str, used: FrameSocket) -> None:
        """Only after its pong: a socket whose reader is stuck on a requester that left would hold the next stream too."""
        used.idle_since_s = time.monotonic()
        with self._lock:
            self._lent.pop(used, None)
            self._idle[websocket_url(endpoint)].append(used)

    def abandon(self, used: FrameSocket) -> None:
        with self._lock:
            self._lent.pop(used, None)
        used.abandon()

    def _look_after(self) -> None:
        """Pings want a pong though the upstream is quiet, and nobody else closes what nobody borrows."""
        while True:
            time.sleep(LOOK_EACH_S)
            with self._lock:
                lent, stale = list(self._lent.items()), self._take_stale(time.monotonic() - IDLE_KEPT_S)
            for used, gone in lent:
                self._look_at(used, gone)
            for rested in stale:
                rested.close()

    @staticmethod
    def _look_at(used: FrameSocket, gone: Callable[[str], None]) -> None:
        if not used.ask():
            gone("the other side closed the WebSocket")
        elif used.silent_for_s() > GONE_AFTER_S:
            gone(f"no pong within {GONE_AFTER_S:g} s")

    def _take_stale(self, before_s: float) -> list[FrameSocket]:
        stale: list[FrameSocket] = []
        for url, sockets in list(self._idle.items()):
            stale += [rested for rested in sockets if rested.idle_since_s < before_s]
            self._idle[url] = [rested for rested in sockets if rested.idle_since_s >= before_s]
            if not self._idle[url]:
                del self._idle[url]
        return stale
