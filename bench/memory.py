"""Does memory stay where it is? `python -m bench.memory [--requests 200000]`, on the embedded broker and demo children.

Prints the resident memory of the supervisor and of its backend children after a tenth of the requests and after all."""

from __future__ import annotations

import argparse
import json
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psutil

from tests.real.embedded_broker import EmbeddedBroker
from tests.real.node import NodeProcess
from tests.real.topics import Topics

IN_PIECES_OF = 500


class Service(BaseHTTPRequestHandler):
    """Takes every answer and keeps none."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    taken = 0
    lock = threading.Lock()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        with Service.lock:
            Service.taken += 1
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n" + b'{"status":"ok"}')

    def log_message(self, format: str, *args: Any) -> None:
        return


def resident_mb(processes: list[psutil.Process]) -> list[float]:
    return [process.memory_info().rss / (1 << 20) for process in processes]


def run(requests: int) -> None:
    service = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{service.server_address[1]}/res"
    broker = EmbeddedBroker().start()
    variables = {"PULSAR_URL": broker.url, "MODEL_NAME": "memory", "BACKEND_PROCESSES": "2", "RES_TOPIC_NAME": "res-memory"}
    try:
        with Topics(broker.url, "memory", "res-memory-of-nobody") as topics, NodeProcess(variables) as node:
            time.sleep(1)
            processes = [node.tree()[0], *node.backends()]
            serve(topics, endpoint, requests // 10)
            early = resident_mb(processes)
            serve(topics, endpoint, requests)
            late = resident_mb(processes)
    finally:
        broker.close()
    for name, before, after in zip(["supervisor", *(f"backend {n}" for n in range(9))], early, late, strict=False):
        print(f"{name}: {before:.1f} MB after {requests // 10:,}, {after:.1f} MB after {requests:,}: {100 * (after / before - 1):+.1f} %")


def serve(topics: Topics, endpoint: str, until: int) -> None:
    """Publish until so many are answered, with no more than a piece ahead."""
    published = Service.taken
    while Service.taken < until:
        if published < until and published - Service.taken < IN_PIECES_OF:
            for _ in range(min(IN_PIECES_OF, until - published)):
                topics.publish(json.dumps({"request_id": str(uuid.uuid4()), "stream": False, "endpoint": endpoint, "data": {}}).encode())
                published += 1
            topics.flush()
        time.sleep(0.01)
    time.sleep(3)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.memory", description=__doc__)
    parser.add_argument("--requests", type=int, default=200_000)
    run(parser.parse_args().requests)


if __name__ == "__main__":
    main()
