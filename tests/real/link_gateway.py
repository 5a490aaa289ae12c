"""A gateway's end of links (docs/api.md) that says what a test wants it to say: a real WebSocket server, one thread a link."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from tests.real.processes import free_port, wait_until
from tests.real.requester import Seen


@dataclass(frozen=True)
class Begin:
    request_id: str
    attempt: int
    at_s: float
    link: int


class LinkGateway:
    """`with LinkGateway() as gateway:`; its attributes may be changed at any time.

    replies: to the begins of an id one after the other, the last one again and again, "" says nothing; default go.
    receipt: to end frames, "" says nothing. refuses_with: a status instead of a WebSocket. links: how many were opened.
    """

    def __init__(self) -> None:
        self.replies: dict[str, list[str]] = {}
        self.receipt = "taken"
        self.refuses_with: int | None = None
        self.links = self.handshakes = 0
        self.begins: list[Begin] = []
        self.port = free_port()
        self._frames: dict[str, list[Seen]] = defaultdict(list)
        self._open: dict[int, ServerConnection] = {}
        self._lock = threading.Lock()
        self._server: Server | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/res/link"

    @property
    def open_links(self) -> int:
        return len(self._open)

    def frames(self, request_id: str) -> list[dict[str, Any]]:
        return [seen.json for seen in self.seen(request_id)]

    def seen(self, request_id: str) -> list[Seen]:
        return list(self._frames[request_id])

    def take(self, request_id: str) -> list[Seen]:
        """All that came for it, which is then forgotten, as all begins are."""
        self.begins.clear()
        return self._frames.pop(request_id, [])

    def ids(self) -> list[str]:
        return [request_id for request_id, seen in list(self._frames.items()) if seen]

    def begun(self, request_id: str) -> list[Begin]:
        return [begin for begin in self.begins if begin.request_id == request_id]

    def wait_for_frames(self, request_id: str, count: int = 1, within_s: float = 5.0) -> list[dict[str, Any]]:
        wait_until(lambda: len(self._frames[request_id]) >= count, within_s=within_s, what=f"frames of {request_id}", every_s=0.005)
        return self.frames(request_id)

    def wait_for_begin(self, request_id: str, count: int = 1) -> Begin:
        wait_until(lambda: len(self.begun(request_id)) >= count, within_s=5, what=f"begin of {request_id}", every_s=0.005)
        return self.begun(request_id)[-1]

    def cancel(self, request_id: str) -> float:
        """To every link; when it was said."""
        for link in list(self._open.values()):
            _say(link, {"type": "cancel", "request_id": request_id})
        return time.monotonic()

    def take_over(self, request_id: str, attempt: int) -> None:
        """Another attempt answers it from now on."""
        for link in list(self._open.values()):
            _say(link, {"type": "busy", "request_id": request_id, "attempt": attempt})

    def break_links(self) -> None:
        """With a reset, as when the gateway's host restarts."""
        for link in list(self._open.values()):
            with contextlib.suppress(OSError):
                link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                link.socket.shutdown(socket.SHUT_RDWR)

    # its life

    def start(self) -> LinkGateway:
        """Again after `stop`, it is on the same port."""
        listening = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self._server = serve(self._converse, sock=listening, process_request=self._refuse, compression=None)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def stop(self) -> None:
        """From now on connections are refused; links are reset."""
        if self._server is not None:
            self._server.socket.close()
            self._server.shutdown()
            self._server = None
        self.break_links()

    def __enter__(self) -> LinkGateway:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _refuse(self, link: ServerConnection, request: Request) -> Response | None:
        self.handshakes += 1
        if self.refuses_with is None:
            return None
        return link.respond(HTTPStatus(self.refuses_with), "no\n")

    def _converse(self, link: ServerConnection) -> None:
        with self._lock:
            self.links += 1
            number = self.links
            self._open[number] = link
        try:
            for text in link:
                for frame in (text if isinstance(text, bytes) else text.encode()).split(b"\n"):
                    self._take(link, number, frame)
        except ConnectionClosed:
            return
        finally:
            self._open.pop(number, None)

    def _take(self, link: ServerConnection, number: int, text: bytes) -> None:
        said = json.loads(text)
        request_id = said["request_id"]
        if said.get("type") == "begin":
            self.begins.append(Begin(request_id, said["attempt"], time.monotonic(), number))
            _say(link, {"type": self._reply(request_id), "request_id": request_id, "attempt": said["attempt"]})
            return
        self._frames[request_id].append(Seen(text, time.monotonic(), number))
        if said["end"]:
            _say(link, {"type": self.receipt, "request_id": request_id})

    def _reply(self, request_id: str) -> str:
        replies = self.replies.get(request_id, ["go"])
        return replies.pop(0) if len(replies) > 1 else replies[0]


def _say(link: ServerConnection, said: dict[str, Any]) -> None:
    if said["type"]:
        with contextlib.suppress(ConnectionClosed):
            link.send(json.dumps(said))
