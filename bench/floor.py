"""The floor: the bare cost of a request's parts, `python -m bench.floor --url pulsar://… --model NAME`.

It does a node's work in a node's place: receive and acknowledge with Pulsar's client, ask the upstream with urllib3, send the
answer, publish a record. Nothing is caught, counted, limited, timed, tried again or kept apart; threads wait for one thing
each, and what goes wrong ends it. Whatever a node costs more is what it costs to be one.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import socket
import struct
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec
import pulsar
import urllib3

from backends.demo import ANSWER
from bench.client import quiet_client
from messaging.topics import request_topic, subscription

RECORD = json.dumps({"a usage record": "x" * 900}).encode()
DEMO_MESSAGE = {"role": "assistant", "content": ANSWER}
DEMO = json.dumps({"object": "chat.completion", "choices": [{"index": 0, "message": DEMO_MESSAGE, "finish_reason": "stop"}]}).encode()
JSON = {"Content-Type": "application/json"}


class Envelope(msgspec.Struct):
    request_id: str
    stream: bool
    endpoint: str
    data: msgspec.Raw
    metadata: dict[str, dict[str, msgspec.Raw]]

    @property
    def link(self) -> str:
        """"" where none is offered."""
        offered = self.metadata.get("workernode", {}).get("link")
        return str(msgspec.json.decode(offered)) if offered else ""


class Link:
    """One WebSocket to the gateway, handshake and frames by hand; what comes back is read and forgotten."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = [f"GET {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}", "Sec-WebSocket-Version: 13", "", ""]
        self._socket.sendall("\r\n".join(lines).encode())
        while not self._socket.recv(4096).endswith(b"\r\n\r\n"):
            pass
        self._lock = threading.Lock()
        threading.Thread(target=self._forget, daemon=True).start()

    def send(self, *texts: bytes) -> None:
        """Text frames, in one piece. A mask of zeros leaves the text as it is."""
        frames = b"".join(b"\x81" + _length(len(text)) + bytes(4) + text for text in texts)
        with self._lock:
            self._socket.sendall(frames)

    def _forget(self) -> None:
        while self._socket.recv(1 << 16):
            pass


def _length(count: int) -> bytes:
    """RFC 6455, 5.2, with the bit that says masked."""
    if count < 126:
        return bytes([128 | count])
    return struct.pack("!BH", 128 | 126, count) if count < 1 << 16 else struct.pack("!BQ", 128 | 127, count)


class Floor:
    def __init__(self, url: str, model: str, threads: int, upstream: str) -> None:
        client = quiet_client(url)
        self._consumer = client.subscribe(
            request_topic(model), subscription(model), consumer_type=pulsar.ConsumerType.Shared,
            initial_position=pulsar.InitialPosition.Earliest, receiver_queue_size=threads,
        )  # fmt: skip
        self._records = client.create_producer(
            f"records-of-{model}", batching_enabled=True, batching_max_publish_delay_ms=5, block_if_queue_full=True
        )
        self._endpoints = urllib3.PoolManager(maxsize=threads, retries=False)
        self._upstream = urllib3.connection_from_url(upstream, maxsize=threads) if upstream else None
        self._links: dict[str, Link] = {}
        self._lock = threading.Lock()

    def work(self) -> None:
        """One thread's loop. Whatever is raised ends the process: a floor that lost a thread would look cheap."""
        try:
            while True:
                message = self._consumer.receive()
                self._answer(msgspec.json.decode(message.data(), type=Envelope))
                self._records.send_async(RECORD, lambda result, _: None)
                self._consumer.acknowledge(message)
        except BaseException as error:
            print(f"the floor ended: {error!r}", flush=True)
            os._exit(1)

    def _answer(self, request: Envelope) -> None:
        identifier = msgspec.json.encode(request.request_id)
        if not request.link:
            body = b'{"request_id":' + identifier + b',"data":' + self._whole(request) + b"}"
            self._endpoints.request("POST", request.endpoint, body=body, headers=JSON)
            return
        link = self._link(request.link)
        begin = b'{"type":"begin","request_id":' + identifier + b',"attempt":1}'
        head = b'{"request_id":' + identifier
        if request.stream:
            link.send(begin)
            self._stream(request, lambda events: link.send(*(head + b',"end":false,"data":' + event + b"}" for event in events)))
            link.send(head + b',"end":true}')
        else:
            link.send(begin, head + b',"end":true,"data":' + self._whole(request) + b"}")

    def _whole(self, request: Envelope) -> bytes:
        return self._asked(request, at_once=True).data if self._upstream else DEMO

    def _stream(self, request: Envelope, send: Callable[[list[bytes]], None]) -> None:
        """Each piece's events at once, when it comes."""
        kept, answer = b"", self._asked(request, at_once=False)
        while piece := answer.read1(1 << 16):
            *events, kept = (kept + piece).split(b"\n\n")
            if found := [event[6:] for event in events if event != b"data: [DONE]"]:
                send(found)
        answer.release_conn()

    def _asked(self, request: Envelope, at_once: bool) -> urllib3.BaseHTTPResponse:
        assert self._upstream is not None
        return self._upstream.urlopen(
            "POST", "/v1/chat/completions", bytes(request.data), JSON, retries=False, redirect=False, preload_content=at_once
        )

    def _link(self, url: str) -> Link:
        with self._lock:
            if url not in self._links:
                self._links[url] = Link(url)
            return self._links[url]


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.floor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of the broker")
    parser.add_argument("--model", required=True, help="whose topic it reads")
    parser.add_argument("--upstream", default="", help="default: a fixed answer")
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--processes", type=int, default=1, help="that share the threads")
    given = parser.parse_args()
    for _ in range(given.processes - 1):
        if not os.fork():  # before there is a client or a thread
            break
    threads = -(-given.threads // given.processes)
    floor = Floor(given.url, given.model, threads, given.upstream)
    workers = [threading.Thread(target=floor.work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    print("the floor is ready", flush=True)
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
