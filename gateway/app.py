"""The routes, and one small handler for each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import uuid4

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from errors import error_object
from gateway import chat, links, nodes
from gateway.body import read_body
from gateway.exchange import Exchange, Gateway
from gateway.keys import KeyDoor
from gateway.models import is_model_name
from gateway.problem import Problem, invalid, too_large, unknown_model
from gateway.publisher import MAX_MESSAGE_BYTES
from messaging import envelope
from pages.page import load

# Credentials are the gateway's to check: no node needs them, and queues keep what they carry on disk.
_WITHHELD_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"})


_CHAT_PATHS = ("/api/v1/chat/completions", "/v1/chat/completions")


def create_app(gateway: Gateway) -> ASGIApp:
    """The ASGI application. Needs connections.py's state in its scope, to close the connection of who does not read."""
    handlers = _Handlers(gateway)
    chat: ASGIApp = ShortWay(handlers.chat)
    if gateway.keys is not None:
        chat = KeyDoor(chat, gateway.keys)
    return ServerErrorMiddleware(_Fork(chat, application(gateway, handlers)), handler=_fail)


class _Fork:
    """What nearly every request asks for goes past the router and its middleware, a quarter of a small request's cost. They
    are for browsers, which say their origin, and for all other paths."""

    def __init__(self, chat: ASGIApp, others: ASGIApp) -> None:
        self._chat, self._others = chat, others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_chat = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in _CHAT_PATHS
        short = is_chat and not any(name == b"origin" for name, _ in scope["headers"])
        await (self._chat if short else self._others)(scope, receive, send)


class ShortWay:
    """One handler, and what it may raise."""

    def __init__(self, handle: Callable[[Request], Awaitable[Response]]) -> None:
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._handle(Request(scope, receive, send))
        except Problem as problem:
            response = problem.response()
        except ClientDisconnect:
            response = Response(status_code=400)  # the server drops it, and wants to have it
        await response(scope, receive, send)


def application(gateway: Gateway, handlers: _Handlers | None = None) -> Starlette:
    """All routes."""
    handlers = handlers or _Handlers(gateway)
    cors = Middleware(
        CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"], expose_headers=["X-Request-Id", "Retry-After"]
    )
    app = Starlette(
        routes=[
            *(Route(path, handlers.chat, methods=["POST"]) for path in _CHAT_PATHS),
            Route("/v1/models", handlers.models, methods=["GET"]),
            Route("/v1/models/{model:path}", handlers.model, methods=["GET"]),
            Route("/health", handlers.health, methods=["GET"]),
            Route("/", handlers.page, methods=["GET"]),
            Route("/res", handlers.answer, methods=["POST"]),
            WebSocketRoute("/res/ws", handlers.frames),
            WebSocketRoute(links.PATH, handlers.link),
        ],
        middleware=[cors] if gateway.keys is None else [cors, Middleware(KeyDoor, keys=gateway.keys)],
    )
    app.add_exception_handler(Problem, _refuse)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_exception_handler(ClientDisconnect, _nobody)
    app.add_exception_handler(500, _fail)
    return app


class _Handlers:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway, self._page = gateway, load("chat.html")

    async def chat(self, request: Request) -> Response:
        gateway = self._gateway
        gateway.refuse_if_full()
        body = await read_body(request, MAX_MESSAGE_BYTES, gateway.bodies)
        asked = chat.read(body)
        if not is_model_name(asked.model) or not await gateway.models.known(asked.model):
            raise unknown_model(asked.model)
        gateway.refuse_if_hopeless(asked.model)
        stream = asked.stream is True
        message = envelope.Request(
            request_id=str(uuid4()),
            stream=stream,
            endpoint=gateway.endpoint(stream),
            data=msgspec.Raw(body),
            metadata={"headers": passed_headers(request), "workernode": {"link": gateway.link, "v": envelope.LINK_VERSION}},
        )
        payload = envelope.encode(message)
        if len(payload) > MAX_MESSAGE_BYTES:
            raise too_large("The request", MAX_MESSAGE_BYTES)
        return Exchange(gateway, asked.model, message.request_id, stream, payload)

    async def models(self, _: Request) -> Response:
        return _json({"object": "list", "data": [self._describe(name) for name in await self._gateway.models.listed()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if name not in await self._gateway.models.listed():
            raise unknown_model(name)
        return _json(self._describe(name))

    def _describe(self, name: str) -> dict[str, str | int]:
        return {"id": name, "object": "model", "created": self._gateway.models.started_at_s, "owned_by": "workernode"}

    async def health(self, _: Request) -> Response:
        """200 while new requests are taken: for a load balancer's probe."""
        gateway = self._gateway
        status = "draining" if gateway.draining else "ok"
        return _json({"status": status, "pending": len(gateway.pending)}, 503 if gateway.draining else 200)

    async def page(self, _: Request) -> Response:
        """The chat page: for a first look, without a key of its own to see."""
        return Response(self._page.body, headers=self._page.headers, media_type="text/html")

    async def answer(self, request: Request) -> Response:
        return await nodes.take_post(request, self._gateway.pending)

    async def frames(self, websocket: WebSocket) -> None:
        await nodes.take_frames(websocket, self._gateway.pending)

    async def link(self, websocket: WebSocket) -> None:
        await links.serve_link(websocket, self._gateway.pending)


def passed_headers(request: Request) -> dict[str, list[str]]:
    """`{"User-Agent": ["curl/8"], …}`: names as the existing service writes them, without credentials."""
    found: dict[str, list[str]] = {}
    for name, value in request.headers.items():
        if name not in _WITHHELD_HEADERS:
            found.setdefault("-".join(part.capitalize() for part in name.split("-")), []).append(value)
    return found


def _json(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


async def _refuse(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return problem.response()


async def _refuse_route(request: Request, error: Exception) -> Response:
    """404 and 405, as OpenAI words them."""
    assert isinstance(error, HTTPException)
    place = f"{request.method} {request.url.path[:200]}"
    known = "Not allowed" if error.status_code == 405 else "Invalid URL"
    problem = invalid(f"{known} ({place})", status=error.status_code)
    problem.headers |= dict(error.headers or {})
    return problem.response()


async def _nobody(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # the server drops it: the requester hung up while it still sent its body


async def _fail(_: Request, __: Exception) -> Response:
    return Problem(error_object("The gateway failed to handle the request.", "server_error"), 500).response()
