"""A real gateway on a free port of 127.0.0.1, a queue in memory, and a node that the test plays over real HTTP and WebSockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec
import openai
import urllib3
from websockets.sync.client import ClientConnection, connect

from gateway import server
from gateway.exchange import Gateway
from gateway.models import Models
from messaging import envelope

DEADLINE_S = 30.0  # a busy machine may stand still for long
COMPLETION = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Paris"}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


def chunk(text: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "finish_reason": None, "delta": {"content": text}}],
    }


def error(type_: str, code: str | int | None = None) -> dict[str, Any]:
    return {"error": {"message": "no such luck", "type": type_, "param": None, "code": code}}


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.005)


class FakeQueue:
    """Keeps what is published. refusal: what publish raises; before_confirmed: runs before it returns."""

    def __init__(self) -> None:
        self.published: queue.Queue[tuple[str, envelope.Request]] = queue.Queue()
        self.refusal: Exception | None = None
        self.before_confirmed: Callable[[envelope.Request], None] | None = None

    async def publish(self, model: str, payload: bytes) -> None:
        if self.refusal is not None:
            raise self.refusal
        request = envelope.decode(payload)
        self.published.put((model, request))
        if self.before_confirmed is not None:
            await asyncio.get_running_loop().run_in_executor(None, self.before_confirmed, request)

    def next(self) -> envelope.Request:
        return self.published.get(timeout=DEADLINE_S)[1]


class Bench:
    """A running gateway, and the calls that a client and a node make."""

    def __init__(self, gateway: Gateway, fake_queue: FakeQueue, url: str, stop: threading.Event) -> None:
        self.gateway, self.queue, self.url, self.stop = gateway, fake_queue, url, stop
        self.pool = ThreadPoolExecutor(16)
        self.http = urllib3.PoolManager(maxsize=16, retries=False, timeout=DEADLINE_S)
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="k-secret", max_retries=0, timeout=DEADLINE_S)

    def ask(self, **fields: Any) -> Future[urllib3.BaseHTTPResponse]:
        body = {"model": "m", "messages": [{"role": "user", "content": "?"}]} | fields
        return self.pool.submit(self.post, "/v1/chat/completions", body)

    def post(self, path: str, body: object) -> urllib3.BaseHTTPResponse:
        sent = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return self.http.request("POST", self.url + path, body=sent)

    def create(self, **fields: Any) -> Future[Any]:
        messages = [{"role": "user", "content": "?"}]
        create: Callable[..., Any] = self.client.chat.completions.create
        return self.pool.submit(create, model="m", messages=messages, **fields)

    def answer(self, request: envelope.Request, data: object) -> urllib3.BaseHTTPResponse:
        """As a node's POST."""
        body = msgspec.json.encode({"request_id": request.request_id, "data": data})
        return self.http.request("POST", request.endpoint.replace("ws", "http", 1).removesuffix("/ws"), body=body)

    def socket(self) -> ClientConnection:
        return connect(self.url.replace("http", "ws") + "/res/ws", max_size=None)

    def link(self) -> FakeLink:
        return FakeLink(connect(self.gateway.link, max_size=None, legacy=True))


class FakeLink:
    """A node's end of a link."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self._heard: list[str] = []  # of a text of several frames

    def __enter__(self) -> FakeLink:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def tell(self, request: envelope.Request, attempt: int = 1) -> None:
        """Sends `begin`, and waits for no reply."""
        self.socket.send(json.dumps({"type": "begin", "request_id": request.request_id, "attempt": attempt}))

    def begin(self, request: envelope.Request, attempt: int = 1) -> str:
        """The type of the reply."""
        self.tell(request, attempt)
        reply = self.read()
        assert (reply["request_id"], reply["attempt"]) == (request.request_id, attempt)
        return str(reply["type"])

    def put(self, request: envelope.Request, data: object = None, end: bool = False) -> None:
        self.socket.send(frame(request, data, end))

    def end(self, request: envelope.Request, data: object = None) -> str:
        """The type of the reply."""
        self.put(request, data, end=True)
        reply = self.read()
        assert reply.pop("request_id") == request.request_id
        return str(reply.pop("type"))

    def read(self, timeout_s: float = DEADLINE_S) -> dict[str, Any]:
        """Raises TimeoutError, websockets' ConnectionClosed."""
        if not self._heard:
            text = self.socket.recv(timeout_s)
            self._heard = (text if isinstance(text, str) else text.decode()).split("\n")
        return dict(json.loads(self._heard.pop(0)))

    def is_silent(self) -> bool:
        """Nothing has come, nor was it sent before the reply to what is asked here."""
        self.socket.send('{"type":"begin","request_id":"nobody","attempt":7}')
        return self.read() == {"type": "gone", "request_id": "nobody", "attempt": 7}

    def kill(self) -> None:
        """As a process that is killed: the kernel closes the connection, without a closing frame."""
        self.socket.socket.shutdown(socket.SHUT_RDWR)


def cancel(request: envelope.Request) -> dict[str, Any]:
    return {"type": "cancel", "request_id": request.request_id}


def lost(request: envelope.Request, attempt: int = 1) -> dict[str, Any]:
    """What the link of an attempt is told that another has taken over from."""
    return {"type": "busy", "request_id": request.request_id, "attempt": attempt}


def frame(request: envelope.Request, data: object = None, end: bool = False) -> str:
    fields = {"request_id": request.request_id, "end": end} | ({} if data is None else {"data": data})
    return json.dumps(fields)


def events(raw: bytes) -> list[str]:
    """The `data:` of each event."""
    return [event.removeprefix("data: ") for event in raw.decode().split("\n\n") if event.startswith("data: ")]


@contextlib.contextmanager
def running(models: Models | None = None, *, drain_timeout_s: float = 0.2, **options: Any) -> Iterator[Bench]:
    """options: fields of Gateway."""
    fake_queue = FakeQueue()
    listener = server.bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    gateway = Gateway(fake_queue, models or Models(), url, **({"timeout_s": DEADLINE_S} | options))
    ready, stop = threading.Event(), threading.Event()
    run = server.run(gateway, listener, ready.set, stop, drain_timeout_s)
    thread = threading.Thread(target=asyncio.run, args=(run,), daemon=True)
    thread.start()
    assert ready.wait(DEADLINE_S)
    bench = Bench(gateway, fake_queue, url, stop)
    yield bench
    stop.set()
    thread.join(DEADLINE_S)
    bench.pool.shutdown(wait=False)
    assert not thread.is_alive(), "the gateway did not end"
