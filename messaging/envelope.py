"""The message of a request: what a gateway publishes and a node reads.

The chat-completion body (`data`) stays undecoded bytes: of a megabyte only the few fields beside it are read.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import msgspec

LONGEST_ID = 200
# Of a later version more may follow behind another dash. Ids of zeros are none, and there is no version ff.
_TRACEPARENT = re.compile(
    r"(?:00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
    r"|(?!00|ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-[0-9a-zA-Z_-]{1,400})?)",
    re.ASCII,
)
LINK_VERSION = 1


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """request_id: a UUID as text; endpoint: where the answer goes, http:// or ws://; data: the OpenAI body as raw JSON."""

    request_id: str
    stream: bool
    endpoint: str
    data: msgspec.Raw
    metadata: dict[str, Any] | None = {}


class UnreadableRequest(Exception):
    """The message is no request. `request_id`, `endpoint` and `stream` are what could be read all the same, or None."""

    def __init__(self, why: str, request_id: str | None, endpoint: str | None, stream: bool) -> None:
        super().__init__(why)
        self.request_id, self.endpoint, self.stream = request_id, endpoint, stream


_request_decoder = msgspec.json.Decoder(Request)


def encode(request: Request) -> bytes:
    return msgspec.json.encode(request)


def decode(payload: bytes) -> Request:
    """Raises UnreadableRequest, which says what is missing."""
    try:
        request = _request_decoder.decode(payload)
        if not _is_id(request.request_id):
            raise ValueError(f"Expected 1 to {LONGEST_ID} printable characters - at `$.request_id`")
        if not _is_endpoint(request.endpoint):
            raise ValueError("Expected an http:// or ws:// address - at `$.endpoint`")
        if bytes(memoryview(request.data)[:1]) != b"{":
            raise ValueError("Expected `object` - at `$.data`")
        return request
    except (ValueError, RecursionError) as error:  # ValueError: msgspec's own, and text that is no UTF-8
        raise _salvage(payload, str(error)) from None


def traceparent_of(request: Request) -> str:
    """The W3C trace context of the requester's headers, as `00-<trace id>-<parent id>-<flags>`; "" where there is none, or
    none that is valid. Gateways write a header's name as Go does; others may have left it as it came."""
    headers = (request.metadata or {}).get("headers")
    if not isinstance(headers, dict):
        return ""
    values = headers.get("Traceparent") or headers.get("traceparent")
    value = values[0] if isinstance(values, list) and len(values) == 1 else values  # two of them are none
    return value if isinstance(value, str) and _TRACEPARENT.fullmatch(value) else ""


def link_of(request: Request) -> str:
    """The address of the link that its gateway offers (docs/api.md); "" where there is none that we know."""
    offered = (request.metadata or {}).get("workernode")
    if not isinstance(offered, dict) or offered.get("v") != LINK_VERSION:
        return ""
    link = offered.get("link")
    return link if isinstance(link, str) and link.startswith(("ws://", "wss://")) and _is_endpoint(link) else ""


def _is_id(value: str) -> bool:
    return 0 < len(value) <= LONGEST_ID and value.isprintable()


@lru_cache(maxsize=64)  # a gateway says the same with each request
def _is_endpoint(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https", "ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a broken IPv6 address
        return False


def _salvage(payload: bytes, why: str) -> UnreadableRequest:
    try:
        fields = msgspec.json.decode(payload, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        fields = {}
    request_id, endpoint, stream = (_loosely(fields.get(name)) for name in ("request_id", "endpoint", "stream"))
    return UnreadableRequest(
        why,
        request_id if isinstance(request_id, str) and _is_id(request_id) else None,
        endpoint if isinstance(endpoint, str) and _is_endpoint(endpoint) else None,
        # Where it does not say, its endpoint does: a stream's is a WebSocket.
        stream if isinstance(stream, bool) else isinstance(endpoint, str) and endpoint.startswith("ws"),
    )


def _loosely(value: msgspec.Raw | None) -> object:
    try:
        return None if value is None else msgspec.json.decode(value)
    except (ValueError, RecursionError):
        return None
