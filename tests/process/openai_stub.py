"""A small server of OpenAI's API without /health or /props, for MODEL_COMMAND. `--family`: with children that ignore TERM."""

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STUBBORN = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.setsid() if os.fork() else None; time.sleep(600)"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(200 if self.path == "/v1/models" else 404, {"data": []})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        self._answer(200, {"choices": [{"message": {"role": "assistant", "content": content}}], "environ": dict(os.environ)})

    def _answer(self, status: int, body: dict[str, object]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def daemonise(code: str) -> None:
    """A grandchild whose parent is gone, in a session of its own: no parent, group or session leads to it."""
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.execv(sys.executable, [sys.executable, "-c", code])


def main() -> None:
    if "--family" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", STUBBORN])
        daemonise(STUBBORN)
    if "--flood" in sys.argv:
        for number in range(20_000):
            print(f"line {number} " + "x" * 100, flush=False)
    if "--silent" in sys.argv:
        time.sleep(600)
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()


if __name__ == "__main__":
    main()
