"""A child's connections to requesters' services: to allowed addresses only, and with verified certificates."""

from __future__ import annotations

import socket
import ssl
from functools import cached_property
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from loguru import logger

from answers.allowed import Allowed
from answers.endpoint import NotAllowed

CONNECT_TIMEOUT_S = 5.0  # for each of a name's addresses
_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}
_TOLD_AT_MOST = 100


class Dialer:
    """ca_bundle: certificates to trust instead of the system's, a PEM file's path. Thread-safe."""

    def __init__(self, ca_bundle: str | None = None, allowed: Allowed | None = None) -> None:
        self.ca_bundle = ca_bundle
        self._allowed = allowed or Allowed()
        self._told: set[str] = set()

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

    def connect(self, host: str, port: int) -> socket.socket:
        """Looked up once, and connected to what was checked: a name that says something else the next time gains nothing.
        Raises NotAllowed where none of its addresses is allowed, OSError."""
        why = ""
        failed: OSError | None = None
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            if refused := self._allowed.why_not(host, port, ip_address(str(address[0]))):
                why = refused
                continue
            try:
                return _connected(socket.socket(family, kind, protocol), address)
            except OSError as error:
                failed = error
        if failed is None and why:
            raise self._refusal(host, why)
        raise failed or OSError(f"{host} has no address")

    def _refusal(self, host: str, why: str) -> NotAllowed:
        if host not in self._told and len(self._told) < _TOLD_AT_MOST:  # once: whoever sends it may send it for ever
            self._told.add(host)
            logger.warning("answers to {} are refused, now and from now on: {} (ALLOWED_ENDPOINTS)", host[:200], why)
        return NotAllowed(f"this node may not answer there: {why}")


def _connected(fresh: socket.socket, address: tuple[Any, ...]) -> socket.socket:
    """Raises OSError."""
    try:
        fresh.settimeout(CONNECT_TIMEOUT_S)
        fresh.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fresh.connect(address)
        return fresh
    except BaseException:
        fresh.close()
        raise
