"""Pings on nodes' sockets: a node that is lost without a word, as with its machine, is found out."""

from __future__ import annotations

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from gateway import links

LINK_PING_INTERVAL_S = 5.0
LINK_PING_TIMEOUT_S = 10.0
_OUR_DELAY_S = 0.1


class NodeSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, with pings of their own on links: other nodes' sockets keep the server's 20 s."""

    _heard_at_s = 0.0

    def start_keepalive(self) -> None:
        if self.scope["path"].endswith(links.PATH):
            self.ping_interval, self.ping_timeout = LINK_PING_INTERVAL_S, LINK_PING_TIMEOUT_S
        super().start_keepalive()

    def data_received(self, data: bytes) -> None:
        self._heard_at_s = self.loop.time()
        super().data_received(data)

    def keepalive_timeout(self) -> None:
        """A pong may be late behind a large answer, so whatever comes counts as one."""
        silent_at_s = self._heard_at_s + (self.ping_timeout or 0.0)
        if self.read_paused:  # there may be a pong in what was not read yet, by us
            silent_at_s = max(silent_at_s, self.loop.time() + _OUR_DELAY_S)
        if silent_at_s > self.loop.time():
            self.pong_timer = self.loop.call_at(silent_at_s, self.keepalive_timeout)
            return
        super().keepalive_timeout()
        self.transport.abort()  # closing would wait for what the node does not read
