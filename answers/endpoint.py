"""What can become of a delivery, and the two addresses behind one `endpoint`."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

_PASSING = (404, 408, 425, 429)  # 404: the path may belong to a service that is just being replaced


class NotDelivered(Exception):
    """The endpoint could not be reached, or did not take the answer; trying again later may help."""


class Refused(NotDelivered):
    """The endpoint refuses this answer for good; trying again would end the same."""


class NoWebSocket(NotDelivered):
    """What answers there is no WebSocket, at least for now."""


class NoWebSocketEver(NoWebSocket, Refused):
    """What answers there is no WebSocket, and says so for good."""


class NotAllowed(NoWebSocketEver):
    """ALLOWED_ENDPOINTS does not let this node answer there, in whatever way."""


class RequesterGone(Exception):
    """The requester left; nobody is there to be told."""


class AnotherAnswers(Exception):
    """Output of another attempt is with the requester already."""


class NodeStopped(Exception):
    """This process ends, and with it whatever it was doing."""


class RequesterUnknown(Exception):
    """The endpoint does not know the request: it has gone, was answered already, or never was there."""


def is_final(status: int) -> bool:
    """Whether an HTTP status says that the same answer will never be taken."""
    return 400 <= status < 500 and status not in _PASSING


def http_url(endpoint: str) -> str:
    return _with_scheme(endpoint, {"ws": "http", "wss": "https"})


def websocket_url(endpoint: str) -> str:
    return _with_scheme(endpoint, {"http": "ws", "https": "wss"})


def _with_scheme(endpoint: str, instead: dict[str, str]) -> str:
    parts = urlsplit(endpoint)
    return urlunsplit(parts._replace(scheme=instead.get(parts.scheme, parts.scheme)))
