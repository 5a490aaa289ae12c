"""Pulsar's admin address as the tests play it: fixed answers, for one token."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "t-1"


@contextlib.contextmanager
def admin_server(answers: dict[str, tuple[int, Any]]) -> Iterator[str]:
    """Its address. `answers`: path below /admin/v2/ → status and content; any other path is a 404, any other token a 401."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content = answers.get(self.path.removeprefix("/admin/v2/"), (404, {"reason": "Topic not found"}))
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                status = 401
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing: a passing test is silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
