"""A model server for measurements: `python -m bench.local_server --model FILE --port PORT --slots N [--request-mib 100]`.

llama.cpp allocates all of its slots at its start; many servers allocate as requests grow. With --request-mib each request
in flight holds so much, in a few seconds' steps, until its end. `PUT /refuse` makes it answer everything with status 503.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import mmap
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GROWS_FOR_S = 4.0
STEPS = 8


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behind = 0
    request_mib = 0
    refuses = False

    def do_PUT(self) -> None:
        Handler.refuses = True
        self._answer(200, b"{}")

    def do_GET(self) -> None:
        self._pass_on(b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        ended = threading.Event()
        if Handler.request_mib and self.path.endswith("/chat/completions"):
            threading.Thread(target=_hold, args=(Handler.request_mib, ended), daemon=True).start()
        try:
            self._pass_on(body)
        finally:
            ended.set()

    def _pass_on(self, body: bytes) -> None:
        if Handler.refuses:
            self._answer(503, b'{"error": {"message": "refused", "type": "unavailable_error", "code": 503}}')
            return
        connection = http.client.HTTPConnection("127.0.0.1", Handler.behind)
        connection.request(self.command, self.path, body or None, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type", ""))
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            while piece := answer.read1(65536):
                self.wfile.write(piece)
        connection.close()

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        return


def _hold(mib: int, ended: threading.Event) -> None:
    """Memory that is really there, as each page is written to, and really gone after: maps of its own, as what is taken
    from the heap may stay with the process."""
    held = []
    for _ in range(STEPS):
        held.append(mmap.mmap(-1, (mib << 20) // STEPS, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        for page in range(0, len(held[-1]), mmap.PAGESIZE):
            held[-1][page] = 1
        if ended.wait(GROWS_FOR_S / STEPS):
            break
    ended.wait()
    for part in held:
        part.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.local_server", description=__doc__)
    for name in ("model", "port", "slots", "context"):
        parser.add_argument(f"--{name}", required=True, type=str if name == "model" else int)
    parser.add_argument("--request-mib", type=int, default=0)
    options = parser.parse_args()
    import xllamacpp  # type: ignore[import-not-found,import-untyped,unused-ignore]

    from backends import xllama

    with socket.create_server(("127.0.0.1", 0)) as probe:
        behind = probe.getsockname()[1]
    given = ["--model", options.model, "--port", str(behind), "--slots", str(options.slots), "--context", str(options.context)]
    server = xllamacpp.Server(xllama._parameters(xllamacpp.CommonParams(), xllama._options(given)))
    Handler.behind, Handler.request_mib = behind, options.request_mib
    print(f"{server.listening_address} is served on port {options.port}", flush=True)
    threading.Thread(target=ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever, daemon=True).start()
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
