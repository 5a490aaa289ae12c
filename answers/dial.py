"""A child's connections to requesters' services: to allowed addresses only, and with verified certificates."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from functools import cached_property
from ipaddress import ip_address
from urllib.parse import urlsplit

from loguru import logger

from answers.allowed import Allowed
from answers.endpoint import NotAllowed
from net.dial import Names, Place, Spoken, connected, speak

CONNECT_TIMEOUT_S = 5.0  # for all of a name's addresses, and TLS
_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}
_TOLD_AT_MOST = 100


class Dialer:
    """ca_bundle: certificates to trust instead of the system's, a PEM file's path."""

    def __init__(self, ca_bundle: str | None = None, allowed: Allowed | None = None) -> None:
        self.ca_bundle = ca_bundle
        self._allowed = allowed or Allowed()
        self._told: set[str] = set()
        self._names = Names()

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """Made when first needed: reading the certificates takes longer than all else in a child's start."""
        return ssl.create_default_context(cafile=self.ca_bundle)

    def check(self, endpoint: str) -> None:
        """Before anything is computed for it, so without a look-up of its name. Raises NotAllowed."""
        try:
            parts = urlsplit(endpoint)
            host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme)
        except ValueError:
            return  # no address at all: whoever connects says so
        if host and port and (why := self._allowed.why_not(host, port)):
            raise self._refusal(host, why)

    async def connect(self, speaker: Callable[[], Spoken], host: str, port: int, *, tls: bool) -> Spoken:
        """Looked up once, and connected to what was checked: a name that says something else the next time gains nothing.
        Raises NotAllowed where none of its addresses is allowed, OSError (TimeoutError, ssl.SSLError too)."""
        give_up_at_s = time.monotonic() + CONNECT_TIMEOUT_S
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            places = self._allowed_of(await self._names.look_up(host, port), host, port)
            plain = await connected(places, give_up_at_s - time.monotonic())
            return await speak(speaker, plain, host=host, tls=self.tls if tls else None)

    def _allowed_of(self, places: list[Place], host: str, port: int) -> list[Place]:
        """Raises NotAllowed where that leaves none."""
        whys = [self._allowed.why_not(host, port, ip_address(str(place[4][0]))) for place in places]
        found = [place for place, why in zip(places, whys, strict=True) if not why]
        if places and not found:
            raise self._refusal(host, str(whys[-1]))
        return found

    def _refusal(self, host: str, why: str) -> NotAllowed:
        if host not in self._told and len(self._told) < _TOLD_AT_MOST:  # once: whoever sends it may send it for ever
            self._told.add(host)
            logger.warning("answers to {} are refused, now and from now on: {} (ALLOWED_ENDPOINTS)", host[:200], why)
        return NotAllowed(f"this node may not answer there: {why}")
