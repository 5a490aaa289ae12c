"""What the node says of itself over HTTP: /livez and /readyz, on STATUS_HOST:STATUS_PORT."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from loguru import logger

if TYPE_CHECKING:
    from config import Settings

STANDS_STILL_AFTER_S = 15.0  # the loop turns at least twice a second
_REQUEST_TIMEOUT_S = 5.0


class Status:
    """`tell` comes from the loop, each turn; requests are answered by threads. Nothing is served without a STATUS_PORT."""

    def __init__(self, settings: Settings) -> None:
        self._why_not_ready = "starting"
        self._told_s = time.monotonic()
        if settings.status_port:
            self._serve(settings.status_host, settings.status_port)

    def tell(self, why_not_ready: str) -> None:
        """`why_not_ready`: "" while the node takes requests."""
        if why_not_ready != self._why_not_ready:
            logger.debug("readiness: {}", why_not_ready or "ready")
        self._why_not_ready, self._told_s = why_not_ready, time.monotonic()

    def look(self, path: str) -> tuple[int, dict[str, str]]:
        """The HTTP status and the body for a path. Readiness is also lost by a loop that stands still."""
        if path not in ("/livez", "/readyz"):
            return 404, {"status": "there are /livez and /readyz"}
        silent_s = time.monotonic() - self._told_s
        trouble = f"the supervisor's loop has stood still for {silent_s:.0f} s" if silent_s > STANDS_STILL_AFTER_S else ""
        if path == "/readyz":
            trouble = trouble or self._why_not_ready
        return (503, {"status": "not ready" if path == "/readyz" else "stuck", "why": trouble}) if trouble else (200, {"status": "ok"})

    def _serve(self, host: str, port: int) -> None:
        status = self

        class Handler(BaseHTTPRequestHandler):
            timeout = _REQUEST_TIMEOUT_S

            def do_GET(self) -> None:
                code, body = status.look(self.path.partition("?")[0])
                data = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                return

        try:
            server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            logger.error("STATUS_PORT should be free to bind: {}:{} is not ({}); the node works without", host, port, error)
            return
        threading.Thread(target=server.serve_forever, name="status", daemon=True).start()
