"""The way to a requester's service: to allowed addresses only, checked after the look-up, and over verified TLS."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from websockets.sync.server import ServerConnection, serve

from answers.allowed import Allowed
from answers.dial import Dialer
from answers.endpoint import NotAllowed, NotDelivered
from answers.links import Links
from answers.pool import SocketPool
from answers.post import Poster
from answers.websocket import open_socket
from ipc.messages import Outcome
from tests.real.crew import Backends, refuse, settings, task
from tests.real.loop import on_loop, until
from tests.real.requester import Requester
from tests.real.upstream import Upstream

METADATA = "http://169.254.169.254/latest/api/token"


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """Names are looked up as these addresses, one look-up after the other; returned: what was asked for."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: str, port: int, *more: Any, **named: Any) -> Any:
        asked.append(host)
        return real(answers[min(len(asked), len(answers)) - 1], port, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


@pytest.fixture
def requester() -> Iterator[Requester]:
    with Requester() as requester:
        yield requester


@pytest.mark.parametrize("way", ["post", "socket", "link"])
@on_loop
async def test_a_name_is_judged_by_what_it_resolves_to(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    resolving(monkeypatch, "169.254.169.254")
    dialer = Dialer()
    with pytest.raises(NotAllowed, match=r"169\.254\.169\.254 is link-local"):
        if way == "post":
            await Poster(1, dialer).post("http://innocent.example/res", b"{}", early_until_s=0)
        elif way == "socket":
            await SocketPool(dialer).borrow("ws://innocent.example/res/ws")
        else:
            await Links(dialer, print).to("ws://innocent.example/res/link")


@on_loop
async def test_what_is_connected_to_is_what_was_checked(monkeypatch: pytest.MonkeyPatch, requester: Requester) -> None:
    """A name that turns to another address after the check: it is looked up once for each connection, not twice."""
    asked = resolving(monkeypatch, "127.0.0.1", "169.254.169.254")
    url = requester.http_url.replace("127.0.0.1", "rebound.example")
    poster = Poster(1, Dialer())
    await poster.post(url, b'{"request_id": "r", "data": {}}', early_until_s=0)
    assert asked == ["rebound.example"] and len(requester.posts("r")) == 1
    with pytest.raises(NotAllowed):
        await Poster(1, Dialer()).post(url, b"{}", early_until_s=0)


class Silent(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)


@on_loop
async def test_of_several_addresses_the_allowed_one_is_used(monkeypatch: pytest.MonkeyPatch, requester: Requester) -> None:
    port = int(requester.http_url.rsplit(":", 1)[1].split("/")[0])
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("169.254.1.1", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    made = await Dialer().connect(Silent, "two.example", port, tls=False)
    assert made.transport.get_extra_info("peername")[0] == "127.0.0.1"
    made.transport.close()


@pytest.mark.parametrize("host", ["2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "[::ffff:169.254.169.254]"])
@on_loop
async def test_other_spellings_of_an_address_change_nothing(host: str) -> None:
    with pytest.raises(NotAllowed):
        await Poster(1, Dialer()).post(f"http://{host}/res", b"{}", early_until_s=0)
    with pytest.raises(NotAllowed):
        await open_socket(f"ws://{host}/res/ws", Dialer())


@on_loop
async def test_what_is_not_listed_is_not_connected_to(requester: Requester) -> None:
    with pytest.raises(NotAllowed, match="not among ALLOWED_ENDPOINTS"):
        await Poster(1, Dialer(None, Allowed("10.0.0.0/8"))).post(requester.http_url, b"{}", early_until_s=0)
    assert requester.connections == 0
    await Poster(1, Dialer(None, Allowed("127.0.0.0/8"))).post(requester.http_url, b'{"request_id": "r", "data": {}}', early_until_s=0)
    assert len(requester.posts("r")) == 1


@on_loop
async def test_a_redirect_is_not_followed(requester: Requester) -> None:
    requester.post_status = 307
    with pytest.raises(NotDelivered, match="307"):
        await Poster(1, Dialer()).post(requester.http_url, b'{"request_id": "r", "data": {}}', early_until_s=0)
    assert requester.post_tries == 1


# a real child


@pytest.fixture(scope="module")
def child(_shared_upstream: Upstream) -> Iterator[Backends]:
    with Backends(settings(_shared_upstream.url)) as child:
        yield child


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("link", ["", "ws://169.254.169.254/res/link"])
def test_a_child_ends_a_refused_request_before_it_is_computed(
    upstream: Upstream, child: Backends, requester: Requester, stream: bool, link: str
) -> None:
    asked = msgspec.structs.replace(task(requester, stream=stream), endpoint=METADATA, link=link)
    outcome = child.run(asked)
    assert outcome.end == "undeliverable" and outcome.error is not None and outcome.answer == b""
    assert "169.254.169.254 is link-local" in outcome.error["message"]
    assert upstream.stats()["received"] == 0


def test_a_stream_to_a_name_that_is_refused_once_it_is_looked_up_ends_at_its_first_output(
    upstream: Upstream, child: Backends, requester: Requester
) -> None:
    """0 is another spelling of 0.0.0.0, which only a look-up tells."""
    asked = msgspec.structs.replace(task(requester, "mock?tokens=500&gap=50ms", stream=True), endpoint="ws://0:9/res/ws")
    outcome = child.run(asked)
    assert outcome.end == "undeliverable" and outcome.error is not None and "0.0.0.0 is unspecified" in outcome.error["message"]
    upstream.wait_for(lambda stats: stats["cancelled"] == 1 and stats["in_flight"] == 0)


def test_a_refused_link_leaves_the_endpoint(child: Backends, requester: Requester) -> None:
    asked = msgspec.structs.replace(task(requester, stream=False), link="ws://169.254.169.254/res/link")
    assert child.run(asked).end == "answered"


def test_an_error_has_no_way_there_either(child: Backends, requester: Requester) -> None:
    refused = msgspec.structs.replace(refuse(requester, {"message": "no", "type": "server_error"}, stream=False), endpoint=METADATA)
    assert isinstance(outcome := child.run(refused), Outcome) and outcome.end == "undeliverable"


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate of its own for 127.0.0.1, and a server's context with it."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "ca.crt", folder / "ca.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=requester"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context


@pytest.fixture
def https(authority: tuple[Path, ssl.SSLContext]) -> Iterator[tuple[str, list[bytes]]]:
    posted: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            return

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            return  # a client that does not trust it

    server = Server(("127.0.0.1", 0), Handler)
    server.socket = authority[1].wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}/res", posted
    server.shutdown()
    server.server_close()


@on_loop
async def test_a_post_needs_a_certificate_that_is_trusted(authority: tuple[Path, ssl.SSLContext], https: tuple[str, list[bytes]]) -> None:
    place, posted = https
    with pytest.raises(NotDelivered, match="CERTIFICATE_VERIFY_FAILED"):
        await Poster(1, Dialer()).post(f"https://{place}", b"{}", early_until_s=0)
    trusting = Poster(1, Dialer(str(authority[0])))
    await trusting.post(f"https://{place}", b'{"a":1}', early_until_s=0)
    await trusting.post(f"wss://{place}", b'{"b":1}', early_until_s=0)
    assert posted == [b'{"a":1}', b'{"b":1}']
    with pytest.raises(NotDelivered, match="CERTIFICATE_VERIFY_FAILED"):  # trusted, but another's
        await trusting.post(f"https://{place.replace('127.0.0.1', 'localhost')}", b"{}", early_until_s=0)


@on_loop
async def test_so_does_a_socket(authority: tuple[Path, ssl.SSLContext]) -> None:
    heard: list[Any] = []

    def hear(connection: ServerConnection) -> None:
        heard.extend(json.loads(text) for text in connection)

    with serve(hear, "127.0.0.1", 0, ssl=authority[1]) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.socket.getsockname()[1]
        with pytest.raises(NotDelivered, match="CERTIFICATE_VERIFY_FAILED"):
            await open_socket(f"wss://127.0.0.1:{port}/res/ws", Dialer())
        trusted = await open_socket(f"https://127.0.0.1:{port}/res/ws".replace("https", "wss"), Dialer(str(authority[0])))
        await trusted.send(b'{"a":1}')
        await trusted.confirm()
        await until(lambda: heard == [{"a": 1}], what="frame")
        trusted.close()
        await asyncio.to_thread(server.shutdown)
