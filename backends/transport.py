"""One POST to an upstream: connections of net/, with their failures in words of errors.py."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from types import TracebackType
from urllib.parse import urlsplit

from backends.base import BackendUnusable
from errors import Failure, Kind
from net.dial import Names, NoConnection, connected, speak
from net.http11 import Answer, BadBody, Connection, Connections, post_head

MAX_ERROR_BODY_BYTES = 64 << 10


class UpstreamFailed(Exception):
    """The upstream did not give what was asked for; `failure` says how."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


class Transport:
    """Kept connections to one URL, `most_rested` at most. Certificates are verified, redirects not followed.
    Raises BackendUnusable where `ca_bundle` holds no certificates."""

    def __init__(self, url: str, headers: dict[str, str], *, most_rested: int, connect_timeout_s: float, ca_bundle: str | None) -> None:
        parts = urlsplit(url)
        self._tls = _tls_context(ca_bundle) if parts.scheme == "https" else None
        self._host, self._port = parts.hostname or "", parts.port or (443 if self._tls else 80)
        self._head = post_head(parts, {"Accept-Encoding": "identity", **headers})
        self._connect_timeout_s = connect_timeout_s
        self._connections, self._names = Connections(most_rested), Names()

    async def post(
        self, body: bytes, *, answer_by_s: float, traceparent: str = "", asks: Callable[[int], None] | None = None
    ) -> Response:
        """Send; return when the headers are there. `answer_by_s`: monotonic; asks: told the descriptor by which the answer will
        come. Raises UpstreamFailed."""
        left_s = answer_by_s - time.monotonic()
        if left_s <= 0:
            raise UpstreamFailed(Failure("timeout", "no time was left to ask"))
        head = self._head + f"traceparent: {traceparent}\r\n".encode("latin-1") if traceparent else self._head
        connection = self._connections.take() or await self._connected(left_s)
        try:
            if asks is not None:
                asks(connection.fileno())
            return Response(await connection.answer(head, body, answer_by_s), connection, self._connections)
        except OSError as error:
            raise UpstreamFailed(_failure(error)) from None

    async def connect(self) -> None:
        """One connection, verified where it is TLS, and kept for the next request. Raises UpstreamFailed."""
        self._connections.give_back(self._connections.take() or await self._connected(self._connect_timeout_s))

    async def _connected(self, within_s: float) -> Connection:
        within_s = min(self._connect_timeout_s, within_s)
        try:
            async with asyncio.timeout(within_s):
                plain = await connected(await self._names.look_up(self._host, self._port), within_s)
                return await speak(Connection, plain, host=self._host, tls=self._tls)
        except TimeoutError:
            raise UpstreamFailed(Failure("timeout", f"no connection within {within_s:.3g} s")) from None
        except OSError as error:
            raise UpstreamFailed(_failure(error)) from None

    def close(self) -> None:
        self._connections.close()


class Response:
    """An answer whose headers are there and whose body is not yet. A context manager: leaving it early closes the
    connection, which tells the upstream that nobody waits any more."""

    def __init__(self, answer: Answer, connection: Connection, connections: Connections) -> None:
        self._answer, self._connection, self._connections = answer, connection, connections
        self.status, self.headers = answer.status, answer.headers

    @property
    def is_event_stream(self) -> bool:
        return self.headers.get("content-type", "").split(";")[0].strip().lower() == "text/event-stream"

    async def read_some(self, deadline_at_s: float) -> bytes:
        """What has come in, as soon as anything has; b"" at the end. Raises UpstreamFailed, also past the deadline."""
        try:
            return await self._answer.read_some(deadline_at_s)
        except OSError as error:
            raise UpstreamFailed(_failure(error)) from None

    async def hand_to(self, take: Callable[[bytes], float], deadline_at_s: float) -> None:
        """What comes in, as it comes (net/http11.py); `take` must not raise. Raises as `read_some`."""
        try:
            await self._answer.hand_to(take, deadline_at_s)
        except OSError as error:
            raise UpstreamFailed(_failure(error)) from None

    async def read_all(self, deadline_at_s: float, limit_bytes: int) -> bytes:
        """The whole body, or its first `limit_bytes`. Raises UpstreamFailed."""
        body = bytearray()
        while len(body) < limit_bytes and (piece := await self.read_some(deadline_at_s)):
            body += piece
        return bytes(body[:limit_bytes])

    async def read_to_end(self, deadline_at_s: float) -> None:
        """Take what is left, so that the connection can be used again."""
        try:
            while await self.read_some(deadline_at_s):
                pass
        except UpstreamFailed:
            return

    def __enter__(self) -> Response:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._connections.give_back(self._connection)


def _tls_context(ca_bundle: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_bundle)
    except OSError as error:
        raise BackendUnusable(f"CA_BUNDLE should be a file of certificates (PEM): {error}", permanent=True) from None


def _failure(error: OSError) -> Failure:
    return Failure(_kind(error), f"{type(error).__name__}: {error}")


def _kind(error: OSError) -> Kind:
    kinds: list[tuple[type[OSError], Kind]] = [
        (socket.gaierror, "unresolved"), (ssl.SSLError, "tls"), (NoConnection, "refused"), (TimeoutError, "timeout"), (BadBody, "garbled"),
    ]  # fmt: skip
    return next((kind for known, kind in kinds if isinstance(error, known)), "reset")
