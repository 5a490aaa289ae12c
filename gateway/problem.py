"""A refusal, as OpenAI words it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from errors import error_object, http_status
from gateway.pending import Frame


class Problem(Exception):
    """Ends a request with OpenAI's error object; `status` where the object's own does not fit."""

    def __init__(self, error: dict[str, Any], status: int | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(error["message"])
        self.error = error
        self.status = status or http_status(error)
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        return msgspec.json.encode({"error": self.error})

    def response(self) -> Response:
        return Response(self.body(), self.status, self.headers, media_type="application/json")

    def frame(self) -> Frame:
        """The same for a stream, which it ends."""
        return Frame(self.body(), end=True, error=self.error)


def invalid(message: str, code: str | None = None, param: str | None = None, status: int | None = None) -> Problem:
    return Problem(error_object(message, "invalid_request_error", code, param), status)


def unknown_model(model: str) -> Problem:
    return invalid(f"The model `{model[:200]}` does not exist or no node has ever served it.", "model_not_found", "model")


def too_large(what: str, limit_bytes: int) -> Problem:
    return invalid(f"{what} is too large: at most {limit_bytes:,} bytes can be taken.", "request_too_large")


def timeout(message: str) -> Problem:
    return Problem(error_object(message, "server_error", "timeout"))


def unavailable(message: str, code: str, *, retry_after_s: int | None = None) -> Problem:
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return Problem(error_object(message, "service_unavailable", code), 503, headers)


def node_lost() -> Problem:
    return Problem(error_object("The node was lost in the middle of its answer: try again.", "server_error", "node_lost"))


def bad_answer(message: str) -> Problem:
    return Problem(error_object(message, "server_error", "bad_answer"), 502)
