"""The node's own HTTP server, on STATUS_HOST:STATUS_PORT: its page, what feeds it, /metrics, /livez and /readyz."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import select
import socket
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec
from loguru import logger

from pages.page import load
from status.book import Book
from status.desk import Desk, LoopSilent
from status.feed import Feed
from status.guard import may_kill, why_no_order, why_not_here
from status.health import Health
from status.lookup import look_up

if TYPE_CHECKING:
    from config import Settings

REQUEST_TIMEOUT_S = 5.0  # between two pieces of a request, and for each piece of an answer
MOST_CONNECTIONS = 64
_KILL = re.compile(r"/children/([0-9]{1,9})/kill")
_PLACES = "there are /, /events, /state, /where/REQUEST_ID, /metrics, /livez and /readyz"


def serve(settings: Settings, health: Health, book: Book, desk: Desk) -> bool:
    """From now on, by threads of its own; False where the port cannot be had: the node works without."""
    try:
        server = _Server((settings.status_host.strip("[]"), settings.status_port), _handler(_Answers(settings, health, book, desk)))
    except OSError as error:
        place = f"{settings.status_host}:{settings.status_port}"
        logger.error("STATUS_PORT should be free to bind: {} is not ({}); the node works without", place, error)
        return False
    book.troubles.listen()
    book.backlog.watch()
    threading.Thread(target=server.serve_forever, name="status", daemon=True).start()
    return True


class _Server(ThreadingHTTPServer):
    """A thread each, of a bounded number: a connection beyond it is closed at once."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, place: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._seats = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        super().__init__(place, handler)

    def server_bind(self) -> None:
        """Without asking some name server who this is."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._seats.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._seats.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.opt(exception=True).debug("a request to the status port broke off")


Answer = tuple[int, str, bytes]  # status, content type, body


def _json(status: int, body: object) -> Answer:
    return status, "application/json", msgspec.json.encode(body)


class _Answers:
    """What is answered to what, apart from how it is sent."""

    def __init__(self, settings: Settings, health: Health, book: Book, desk: Desk) -> None:
        self.settings, self.feed = settings, Feed(book, health)
        self._health, self._book, self._desk = health, book, desk
        self._token = secrets.token_urlsafe(24) if may_kill(settings) else ""
        self.page = load("node.html", token=self._token)

    def get(self, path: str, accept: str) -> Answer:
        if path in ("/livez", "/readyz"):
            status, words = self._health.look(path)
            return status, "application/json", json.dumps(words).encode()
        if path == "/metrics":
            return self._metrics(accept)
        if path == "/state":
            return _json(200, self.feed.whole())
        if path.startswith("/where/"):
            return self._where(unquote(path.removeprefix("/where/")))
        return _json(404, {"status": _PLACES})

    def _metrics(self, accept: str) -> Answer:
        from status.metrics import exposition  # prometheus-client, once somebody asks

        kind, body = exposition(self._book, self._health, accept)
        return 200, kind, body

    def _where(self, request_id: str) -> Answer:
        try:
            timeline = look_up(request_id, self._book, self._desk)
        except LoopSilent as silent:
            return _json(503, {"status": str(silent)})
        if timeline is None:
            return _json(404, {"status": "this node neither holds this request nor remembers it"})
        return _json(200, timeline)

    def post(self, path: str, headers: Any) -> Answer:
        found = _KILL.fullmatch(path)
        if found is None:
            return _json(404, {"status": "there is /children/NUMBER/kill"})
        if not self._token:
            return _json(403, {"status": "children may be killed in the demo, or with ALLOW_KILL=true, and with STATUS_HOST on loopback"})
        if refusal := why_no_order(headers, self._token):
            return _json(403, {"status": refusal})
        number = int(found[1])
        try:
            is_killed = self._desk.ask(lambda node: node.kill(number))
        except LoopSilent as silent:
            return _json(503, {"status": str(silent)})
        return _json(200, {"status": "killed"}) if is_killed else _json(404, {"status": "there is no such child any more"})


def _handler(answers: _Answers) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT_S
        server_version, sys_version = "WorkerNode", ""

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if refusal := why_not_here(answers.settings, self.headers):
                self._send(_json(403, {"status": refusal}))
            elif path == "/":
                self._send((200, "text/html; charset=utf-8", answers.page.body), answers.page.headers)
            elif path == "/events":
                self._feed()
            else:
                self._send(answers.get(path, self.headers.get("Accept", "")))

        def do_POST(self) -> None:
            refusal = why_not_here(answers.settings, self.headers)
            self._send(_json(403, {"status": refusal}) if refusal else answers.post(self.path.partition("?")[0], self.headers))

        def _send(self, answer: Answer, headers: dict[str, str] | None = None) -> None:
            status, kind, body = answer
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for name, value in {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def _feed(self) -> None:
            if not answers.feed.take_seat():
                self._send(_json(503, {"status": "too many watch this page already"}))
                return
            try:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                with contextlib.suppress(OSError):  # it has left
                    answers.feed.send(self.wfile.write, self._has_left)
            finally:
                answers.feed.leave_seat()

        def _has_left(self, within_s: float) -> bool:
            """A watcher has nothing to say: what can be read is its end."""
            return bool(select.select([self.connection], [], [], within_s)[0])

        def log_message(self, format: str, *args: Any) -> None:
            return

    return Handler
