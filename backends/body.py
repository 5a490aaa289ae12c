"""The request's body on its way to the upstream: the few fields that the node sets, everything else byte for byte."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from backends.transport import UpstreamFailed
from errors import Failure

_NO_OBJECT = b'{"error": {"message": "The body of the request is no JSON object.", "type": "invalid_request_error"}}'
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True)
class Habits:
    """How an upstream wants to be asked, learned from what it refused.

    stream: None as the requester wants it, True always streamed, False never; usage_option: `include_usage` may be asked.
    """

    stream: bool | None = None
    usage_option: bool = True

    def after_refusal(self, message: str, param: str | None, streamed: bool) -> Habits | None:
        """What to try after a 400 that speaks of streaming, or None where nothing is left to try."""
        words = f"{message} {param or ''}".lower()
        if "stream_options" in words or "include_usage" in words:
            return replace(self, usage_option=False) if self.usage_option else None
        if self.stream is None and (param == "stream" or "stream mode" in words or "streaming" in words):
            return replace(self, stream=not streamed)
        return None


class Body:
    """A chat-completion body, decoded one level deep. Raises UpstreamFailed with status 400, as any
    upstream would answer a body that is no JSON object."""

    def __init__(self, data: bytes) -> None:
        try:
            self._fields = _fields.decode(data)
            options = _fields.decode(self._fields["stream_options"]) if self._has_options() else {}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UpstreamFailed(Failure("http", str(error), 400, _NO_OBJECT)) from None
        self._options = options
        self.wants_usage = bytes(options.get("include_usage", b"")) == b"true"

    def _has_options(self) -> bool:
        return bytes(self._fields.get("stream_options", b"null")) != b"null"

    def for_upstream(self, *, model: str, stream: bool, habits: Habits) -> bytes:
        """`model`: the upstream's name of it. A stream is always asked to bring its usage, if the upstream knows how."""
        fields = dict(self._fields)
        fields["model"] = msgspec.Raw(msgspec.json.encode(model))
        fields["stream"] = msgspec.Raw(b"true" if stream else b"false")
        fields.pop("stream_options", None)
        if stream and habits.usage_option:
            options = {**self._options, "include_usage": msgspec.Raw(b"true")}
            fields["stream_options"] = msgspec.Raw(msgspec.json.encode(options))
        return msgspec.json.encode(fields)

    def prompt_characters(self) -> int:
        """Size of the messages, for an estimate of their tokens."""
        return len(self._fields.get("messages", b""))
