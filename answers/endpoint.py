"""What can become of a delivery, and the two addresses behind one `endpoint`."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit


class NotDelivered(Exception):
    """The endpoint could not be reached, or did not take the answer; trying again later may help."""


class Refused(NotDelivered):
    """The endpoint refuses this answer for good; trying again would end the same."""


class RequesterGone(Exception):
    """The requester left while its stream ran; nobody is there to be told."""


class RequesterUnknown(Exception):
    """The endpoint does not know the request: it has gone, was answered already, or never was there."""


def http_url(endpoint: str) -> str:
    return _with_scheme(endpoint, {"ws": "http", "wss": "https"})


def websocket_url(endpoint: str) -> str:
    return _with_scheme(endpoint, {"http": "ws", "https": "wss"})


def _with_scheme(endpoint: str, instead: dict[str, str]) -> str:
    parts = urlsplit(endpoint)
    return urlunsplit(parts._replace(scheme=instead.get(parts.scheme, parts.scheme)))
