"""Connections over TCP and TLS, each of a name's addresses tried within one time."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any, TypeVar

THREADS = 16  # started as they are needed
Place = tuple[int, int, int, str, Any]  # as socket.getaddrinfo gives them
Spoken = TypeVar("Spoken", bound=asyncio.Protocol)


class NoConnection(OSError):
    """None of a name's addresses takes connections."""


class Names:
    """Looks names up, in threads of its own, as the system's way blocks: each name in one of them, whoever asks for it. A
    dead name server keeps some for long, so what must not wait for others' names has its own."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="names")
        self._asking: dict[tuple[str, int], asyncio.Future[list[Place]]] = {}

    async def look_up(self, host: str, port: int) -> list[Place]:
        """Raises socket.gaierror."""
        host = host.strip("[]")
        if _is_address(host):
            return _look_up(host, port)
        asked = self._asking.get((host, port))
        if asked is None:
            asked = asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host, port)
            self._asking[host, port] = asked
            asked.add_done_callback(lambda done: self._forget((host, port), done))
        return await asyncio.shield(asked)

    def _forget(self, place: tuple[str, int], done: asyncio.Future[list[Place]]) -> None:
        del self._asking[place]
        if not done.cancelled():
            done.exception()  # seen, though nobody may wait for it any more


def _look_up(host: str, port: int) -> list[Place]:
    return [*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _is_address(host: str) -> bool:
    """Then nothing has to be asked, and no other thread to do it."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


async def connected(places: Sequence[Place], within_s: float) -> socket.socket:
    """To the first that answers; each has its share of the time. Raises NoConnection, TimeoutError."""
    give_up_at_s = time.monotonic() + within_s
    failure: OSError = NoConnection("the name resolves to no address")
    for left, (family, kind, protocol, _, address) in zip(range(len(places), 0, -1), places, strict=True):
        share_s = max(0.01, (give_up_at_s - time.monotonic()) / left)
        try:
            return await _connected(socket.socket(family, kind, protocol), address, share_s)
        except TimeoutError:
            failure = TimeoutError(f"no connection to {address[0]} within {share_s:.3g} s")
        except OSError as error:
            failure = NoConnection(str(error))
    raise failure


async def _connected(fresh: socket.socket, address: Any, within_s: float) -> socket.socket:
    try:
        fresh.setblocking(False)
        fresh.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(within_s):
            await asyncio.get_running_loop().sock_connect(fresh, address)
        return fresh
    except BaseException:
        fresh.close()
        raise


async def speak(speaker: Callable[[], Spoken], to: socket.socket, *, host: str, tls: ssl.SSLContext | None) -> Spoken:
    """Hand a connected socket to a protocol of the loop's, behind the handshake where there is TLS. `host`: whose
    certificate it must be. Raises OSError (ssl.SSLError too)."""
    loop = asyncio.get_running_loop()
    try:
        _, spoken = await loop.create_connection(speaker, sock=to, ssl=tls, server_hostname=host.strip("[]") if tls else None)
        return spoken
    except BaseException:
        to.close()
        raise
