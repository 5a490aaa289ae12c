"""The broker's life: bind, recover, serve, close."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import uvloop
from loguru import logger

from broker.admin import MAX_HEAD_BYTES, Admin
from broker.connections import Broker, Connection
from broker.dispatching import Dispatcher
from broker.options import Options
from broker.storage import Storage, StorageUnusable
from broker.topics import Topics

STOP_POLL_S = 0.1
FLUSH_EACH_S = 0.1  # an acknowledgement that was not stored yet is lost by a crash, and its message comes again
KEEP_ALIVE_S = 30.0  # as Pulsar's keepAliveIntervalSeconds
FORGET_EACH_S = 60.0
SWITCH_INTERVAL_S = 0.001  # between the event loop and the writer, which waits this long at most for the interpreter


class CannotListen(Exception):
    """A port cannot be had."""


def serve(options: Options, ready: Callable[[], None], stop: threading.Event) -> int:
    """Runs until `stop` is set; returns an exit code: 0, or 78 where a port or the data folder cannot be had.

    `ready` is called once, when clients are served. Touches no signal handlers.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with ExitStack() as listeners:
        try:
            listener = listeners.enter_context(_bind(options.host, options.port))
            admin_listener = listeners.enter_context(_bind(options.host, options.admin_port))
            uvloop.run(_serve(options, listener, admin_listener, ready, stop))
        except (CannotListen, StorageUnusable) as why:
            logger.error("{}", why)
            return os.EX_CONFIG
    return os.EX_OK


async def _serve(
    options: Options, listener: socket.socket, admin_listener: socket.socket, ready: Callable[[], None], stop: threading.Event
) -> None:
    loop = asyncio.get_running_loop()
    started_s = time.monotonic()
    storage = Storage(options.data, lambda call: _post(loop, call))
    try:
        dispatcher = Dispatcher(loop)
        topics = Topics(storage, dispatcher.wake)
        broker = Broker(topics, storage, dispatcher, options.token, options.max_connections)
        server = await loop.create_server(lambda: Connection(broker), sock=listener, backlog=1024)
        admin = await asyncio.start_server(Admin(topics, options.token).serve, sock=admin_listener, limit=MAX_HEAD_BYTES)
        logger.info("{} topics recovered in {:.3f} s", len(topics.names()), time.monotonic() - started_s)
        logger.info("broker on pulsar://{}, admin on http://{}", _address(listener), _address(admin_listener))
        ready()
        await _run(broker, stop)
        await _close(broker, server, admin)
    finally:
        storage.close()


def _post(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """From the writer's thread. What it has to tell once the loop has ended nobody waits for any more."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(call)


async def _run(broker: Broker, stop: threading.Event) -> None:
    """What comes round by itself, until the end."""
    loop = asyncio.get_running_loop()
    next_tick_s, next_forget_s = loop.time() + KEEP_ALIVE_S, loop.time() + FORGET_EACH_S
    while not stop.is_set():
        await asyncio.sleep(min(STOP_POLL_S, FLUSH_EACH_S))
        broker.topics.flush()
        now_s = loop.time()
        if now_s >= next_tick_s:
            next_tick_s = now_s + KEEP_ALIVE_S
            for connection in list(broker.connections):
                connection.tick()
        if now_s >= next_forget_s:
            next_forget_s = now_s + FORGET_EACH_S
            broker.topics.forget_unused(now_s)


async def _close(broker: Broker, server: asyncio.Server, admin: asyncio.Server) -> None:
    """Nobody new first; then those that are there, whose clients come back to the next broker; their last
    acknowledgements are stored."""
    server.close()
    admin.close()
    for connection in list(broker.connections):
        connection.close()
    broker.topics.flush()
    await asyncio.sleep(0)
    logger.info("broker closed")


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises CannotListen."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=1024)
        # Inherited by connections; asyncio sets it only on sockets that say their protocol, which these do not.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise CannotListen(f"port {port} of {host} cannot be had: {error.strerror or error}") from None


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
