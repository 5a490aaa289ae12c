"""Nodes' sockets: pings find out who is lost without a word, as with its machine; a link's frames take the short way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from gateway import links

LINK_PING_INTERVAL_S = 5.0
LINK_PING_TIMEOUT_S = 10.0
_OUR_DELAY_S = 0.1
MOST_TOGETHER = 1000  # frames in a text


class NodeSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, with pings of their own on links: other nodes' sockets keep the server's 20 s.

    take: of a link, told each text frame as it comes. The server's own way, by a queue and with reading paused for each
    frame, is made for applications that may wait; `app_state["socket"]` is how a link finds this one."""

    take: Callable[[bytes], None] | None = None
    _heard_at_s = 0.0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._unsaid: list[bytes] = []
        self.app_state: dict[str, object] = {**self.app_state, "socket": self}

    def send_receive_event_to_app(self) -> None:
        text = b"".join(self.frames)
        if self.take is None or self.close_sent or self.curr_msg_data_type != "text" or not _is_utf8(text):
            super().send_receive_event_to_app()
        else:
            self.frames = []
            self.take(text)

    def say(self, text: bytes) -> bool:
        """One frame of a link, which goes out with all others of this turn of the loop, one a line of one text. False where it
        would have to wait, or the socket is closed."""
        if not self.writable.is_set() or self.close_sent or self.disconnected or self.transport.is_closing():
            return False
        if not self._unsaid:
            self.loop.call_soon(self._say_all)
        self._unsaid.append(text)
        return True

    def _say_all(self) -> None:
        said, self._unsaid = self._unsaid, []
        if not (self.close_sent or self.disconnected or self.transport.is_closing()):
            for at in range(0, len(said), MOST_TOGETHER):
                self.conn.send_text(b"\n".join(said[at : at + MOST_TOGETHER]))
            self.transport.write(b"".join(self.conn.data_to_send()))

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


def _is_utf8(text: bytes) -> bool:
    try:
        return text.isascii() or bool(text.decode())
    except UnicodeDecodeError:
        return False
