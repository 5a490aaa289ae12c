"""The message of a request: what a gateway publishes and a node reads.

The chat-completion body (`data`) stays undecoded bytes: of a megabyte only the few fields beside it are read.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """request_id: a UUID as text; endpoint: where the answer goes, http:// or ws://; data: the OpenAI body as raw JSON."""

    request_id: str
    stream: bool
    endpoint: str
    data: msgspec.Raw
    metadata: dict[str, Any] = {}


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
        if not bytes(request.data).lstrip().startswith(b"{"):
            raise msgspec.ValidationError("Expected `object` - at `$.data`")
        _check_endpoint(request.endpoint)
        return request
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise _salvage(payload, str(error)) from None


def _check_endpoint(endpoint: str) -> None:
    if not endpoint.startswith(("http://", "https://", "ws://", "wss://")):
        raise msgspec.ValidationError("Expected an http:// or ws:// address - at `$.endpoint`")


def _salvage(payload: bytes, why: str) -> UnreadableRequest:
    try:
        loose = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        loose = None
    fields = loose if isinstance(loose, dict) else {}
    request_id, endpoint = fields.get("request_id"), fields.get("endpoint")
    return UnreadableRequest(
        why,
        request_id if isinstance(request_id, str) else None,
        endpoint if isinstance(endpoint, str) else None,
        fields.get("stream") is True,
    )
