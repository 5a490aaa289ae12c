"""Who may ask the status port for what: a page of somebody else's, open in a browser on this machine, may not."""

from __future__ import annotations

import hmac
import ipaddress
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from config import Settings

TOKEN_HEADER = "X-WorkerNode-Token"


class Headers(Protocol):
    def get(self, name: str, /) -> str | None:
        """By a name of any case."""


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own, which nobody reaches from elsewhere."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def may_kill(settings: Settings) -> bool:
    """In the demo, or where ALLOW_KILL says so; on loopback in any case."""
    return is_loopback(settings.status_host) and (settings.node_type == "demo" or settings.allow_kill)


def why_not_here(settings: Settings, headers: Headers) -> str:
    """"" where the request names a host that this port is for. Bound to loopback it is for loopback's names alone: any other
    name leads here only by somebody's DNS (rebinding), to have a browser read what it may not."""
    host = headers.get("Host")
    if not is_loopback(settings.status_host) or not host or is_loopback(_name(f"//{host}")):
        return ""
    return "this port is for this machine alone: ask for it by 127.0.0.1 or localhost"


def why_no_order(headers: Headers, token: str) -> str:
    """"" where a POST comes from our own page: it has the page's token, and no browser says that it is of another site."""
    origin, host = headers.get("Origin"), headers.get("Host")
    is_other_site = (headers.get("Sec-Fetch-Site") or "same-origin") != "same-origin"
    if not host or (origin is not None and _place(origin) != host) or is_other_site:
        return "this order comes from another site"
    if not hmac.compare_digest((headers.get(TOKEN_HEADER) or "").encode(), token.encode()):
        return f"this order has no {TOKEN_HEADER} header with the page's token: load the page anew"
    return ""


def _place(url: str) -> str:
    """`host:port`."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
