"""The gateway's life: bind, serve, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial

import uvicorn
import uvloop
from loguru import logger

from config import Settings
from gateway.app import create_app
from gateway.connections import Door, HttpConnection, connection_limit, raise_file_limit
from gateway.exchange import Gateway
from gateway.keepalive import NodeSocket
from gateway.keys import Keys
from gateway.models import Models
from gateway.nodes import MAX_ANSWER_BYTES
from gateway.problem import unavailable
from gateway.publisher import PulsarPublisher
from messaging.admin import PulsarAdmin
from messaging.client import close_in_time, open_client

_FLUSH_TIMEOUT_S = 3
_CLOSE_TIMEOUT_S = 3.0
_DRAIN_POLL_S = 0.05
_PORT_ERRORS = frozenset({errno.EADDRINUSE, errno.EACCES})


class CannotBind(Exception):
    """The address cannot be had; names the variable to change."""


def serve(settings: Settings, ready: Callable[[], None], stop: threading.Event, *, own_model: str = "") -> int:
    """Runs until `stop` is set; returns an exit code: 0, or 78 where the address cannot be had.

    own_model: the model to list where there is no admin address; empty for a gateway by itself.
    `ready` is called once, when requests are taken. After `stop` new requests get 503, and those that wait get
    DRAIN_TIMEOUT_S to be answered, so nodes must live that long too. Touches no signal handlers.
    """
    try:
        keys = Keys(settings.gateway_api_keys_file) if settings.gateway_api_keys_file else None
        listener = bind(settings.host, settings.port)
    except (OSError, ValueError) as mistake:  # of a file that has changed since the configuration was read
        logger.error("GATEWAY_API_KEYS_FILE should hold a key on each line: {}", mistake)
        return os.EX_CONFIG
    except CannotBind as mistake:
        logger.error("{}", mistake)
        return os.EX_CONFIG
    _log_server_errors()
    raise_file_limit()
    with listener:
        uvloop.run(_serve(settings, keys, own_model, listener, ready, stop))
    return os.EX_OK


class _ToOurLog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        logger.opt(exception=record.exc_info).log(record.levelname, "server: {}", record.getMessage().strip())


def _log_server_errors() -> None:
    """uvicorn's log is the standard library's: what matters of it goes where ours goes."""
    theirs = logging.getLogger("uvicorn.error")
    theirs.handlers, theirs.propagate = [_ToOurLog()], False


async def _serve(
    settings: Settings, keys: Keys | None, own_model: str, listener: socket.socket, ready: Callable[[], None], stop: threading.Event
) -> None:
    publisher = PulsarPublisher(open_client(settings))
    admin = PulsarAdmin(settings.pulsar_admin_url, settings.pulsar_token, settings.ca_bundle) if settings.pulsar_admin_url else None
    models = Models(admin, own_model)
    gateway = Gateway(publisher, models, answer_url(settings), settings.timeout_s, max_pending=settings.max_pending, keys=keys)
    logger.info("gateway on http://{}, answers to {}", address(settings.host, settings.port), gateway.answer_url)
    await run(gateway, listener, ready, stop, settings.drain_timeout_s)
    models.close()
    close_in_time(publisher.close, _CLOSE_TIMEOUT_S)


async def run(
    gateway: Gateway, listener: socket.socket, ready: Callable[[], None], stop: threading.Event, drain_timeout_s: float
) -> None:
    """Serves a gateway on a bound socket until `stop`, then drains it."""
    door = Door(connection_limit(gateway.max_pending), gateway.head_within_s)
    config = uvicorn.Config(
        create_app(gateway),
        http=partial(HttpConnection, door=door),  # type: ignore[arg-type]
        ws=NodeSocket,
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws_max_size=MAX_ANSWER_BYTES,
        ws_per_message_deflate=False,
        timeout_keep_alive=75,  # longer than a node's pool keeps a connection, so that it is the node who closes
        timeout_graceful_shutdown=_FLUSH_TIMEOUT_S,
    )
    await _Server(config, gateway, door, ready, stop, drain_timeout_s).serve([listener])


class _Server(uvicorn.Server):
    """uvicorn's server, ended by an event rather than by signals, and with nodes still heard while it drains."""

    def __init__(
        self, config: uvicorn.Config, gateway: Gateway, door: Door, ready: Callable[[], None], stop: threading.Event,
        drain_timeout_s: float,
    ) -> None:
        super().__init__(config)
        self._door, self._gateway, self._ready, self._stop = door, gateway, ready, stop
        self._drain_timeout_s = drain_timeout_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def on_tick(self, counter: int) -> bool:
        if self._stop.is_set():
            await drain(self._gateway, self._drain_timeout_s)
            self.should_exit = True
        self._door.sweep(asyncio.get_running_loop().time())
        return await super().on_tick(counter)


async def drain(gateway: Gateway, timeout_s: float) -> None:
    """Before the sockets close, as the answers come over them: waits for what is pending, then refuses what is left."""
    gateway.draining = True
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while gateway.pending and loop.time() < deadline:
        await asyncio.sleep(_DRAIN_POLL_S)
    problem = unavailable("The gateway is shutting down: no answer came in time.", "shutting_down")
    for waiter in gateway.pending:
        gateway.pending.end(waiter, problem.frame())
    await asyncio.sleep(_DRAIN_POLL_S)  # the last replies to the nodes leave before their links are closed


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises CannotBind."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048, dualstack_ipv6=host == "::")
    except socket.gaierror as error:
        raise CannotBind(f"HOST should be an address of this machine: {host!r} is none ({error.strerror})") from None
    except OSError as error:
        variable = "PORT" if error.errno in _PORT_ERRORS else "HOST"
        raise CannotBind(f"{variable} should be free to bind: {address(host, port)} is not ({os.strerror(error.errno or 0)})") from None
    # Both are inherited by connections. asyncio sets the first only where a socket names its protocol, and a listener names
    # none: small frames would wait 40 ms for the peer's delayed acknowledgement of the one before.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # a peer that reads nothing for a minute is cut off
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
    return listener


def address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def answer_url(settings: Settings) -> str:
    """Where nodes reach this gateway: ANSWER_URL, or the address it binds, or this machine's primary one."""
    if settings.answer_url:
        return settings.answer_url
    host = settings.host
    if host in ("0.0.0.0", "::"):
        host = primary_address()
    return f"http://{address(host, settings.port)}"


def primary_address() -> str:
    """The address that this machine would send from. Connecting a UDP socket chooses it and sends nothing."""
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            return str(probe.getsockname()[0])
    logger.warning("this machine has no route anywhere: nodes elsewhere need ANSWER_URL")
    return "127.0.0.1"
