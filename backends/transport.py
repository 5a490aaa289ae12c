"""One POST to an upstream: urllib3 behind a small face, so that its cost and its quirks can be answered here alone."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from types import TracebackType
from typing import Any

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)

from answers.run import MARGIN_S, Run
from backends.answer import READ_BYTES, Answer
from backends.base import BackendUnusable
from backends.connection import PlainConnection, TlsConnection, used_by
from errors import Failure, Kind

MAX_ERROR_BODY_BYTES = 64 << 10
_FAILURES = (HTTPError, http.client.HTTPException, OSError, ValueError)


class UpstreamFailed(Exception):
    """The upstream did not give what was asked for; `failure` says how."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


class Transport:
    """Keep-alive connections to one URL, for `pool_size` threads. Certificates are verified, redirects not followed.
    Raises BackendUnusable where `ca_bundle` holds no certificates."""

    def __init__(self, url: str, headers: dict[str, str], *, pool_size: int, connect_timeout_s: float, ca_bundle: str | None) -> None:
        parsed = urllib3.util.parse_url(url)
        self._target = parsed.request_uri
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **headers}
        self._connect_timeout_s = connect_timeout_s
        options: dict[str, Any] = {"maxsize": pool_size, "block": False, "retries": False}
        host, port = parsed.host or "", parsed.port
        if parsed.scheme == "https":
            context = _tls_context(ca_bundle)
            self._pool: urllib3.HTTPConnectionPool = urllib3.HTTPSConnectionPool(host, port, ssl_context=context, **options)
            self._pool.ConnectionCls = TlsConnection
        else:
            self._pool = urllib3.HTTPConnectionPool(host, port, **options)
            self._pool.ConnectionCls = PlainConnection

    def post(self, body: bytes, run: Run, *, answer_by_s: float, traceparent: str = "") -> Response:
        """Send; return when the headers are there. `answer_by_s`: monotonic. Raises UpstreamFailed, and what the run was
        ended for, which shuts the connection."""
        left_s = answer_by_s - time.monotonic()
        if left_s <= 0:
            raise UpstreamFailed(Failure("timeout", "no time was left to ask"))
        connect_s = min(self._connect_timeout_s, left_s)
        run.step(connect_s + left_s)
        headers = {**self._headers, "traceparent": traceparent} if traceparent else self._headers
        try:
            with used_by(run):
                return Response(self._sent(body, headers, urllib3.Timeout(connect=connect_s, read=left_s)), run)
        except BaseException as error:
            run.let_go()
            run.check()
            if isinstance(error, HTTPError | OSError):
                raise UpstreamFailed(_failure(error)) from None
            raise

    def connect(self, run: Run) -> None:
        """One connection, verified where it is TLS, and kept for the next request. Raises UpstreamFailed."""
        try:
            with used_by(run):
                connection = self._pool._get_conn()
                connection.timeout = self._connect_timeout_s
                if not connection.is_connected:
                    connection.connect()
            self._pool._put_conn(connection)
        except (HTTPError, OSError) as error:
            raise UpstreamFailed(_failure(error)) from None
        finally:
            run.let_go()

    def _sent(self, body: bytes, headers: dict[str, str], timeout: urllib3.Timeout) -> urllib3.BaseHTTPResponse:
        return self._pool.urlopen(
            "POST", self._target, body, headers, preload_content=False, redirect=False, timeout=timeout, retries=False
        )

    def close(self) -> None:
        self._pool.close()


class Response:
    """An answer whose headers are there and whose body is not yet. A context manager: leaving it early closes the
    connection, which tells the upstream that nobody waits any more."""

    def __init__(self, raw: urllib3.BaseHTTPResponse, run: Run) -> None:
        self._raw, self._run = raw, run
        self._socket: socket.socket | None = getattr(raw.connection, "live_socket", None)
        self._set_s: float | None = None
        self._complete = self._has_been_read = False
        self.status = raw.status
        self.headers = {name.lower(): value for name, value in raw.headers.items()}
        # urllib3 unpacks what is packed, though it was asked not to be; else its steps between are not worth their time.
        self._answer: Answer | None = None if "content-encoding" in self.headers else getattr(raw, "_original_response", None)

    @property
    def is_event_stream(self) -> bool:
        return self.headers.get("content-type", "").split(";")[0].strip().lower() == "text/event-stream"

    def read_some(self, deadline_at_s: float) -> bytes:
        """What has come in, as soon as anything has; b"" at the end. Raises UpstreamFailed, also past the deadline, and
        what the run was ended for."""
        left_s = deadline_at_s - time.monotonic()
        if left_s <= 0:
            raise UpstreamFailed(Failure("timeout", "no output in time"))
        self._run.by_s = deadline_at_s + MARGIN_S
        try:
            self._wait_at_most(left_s)
            piece: bytes = self._answer.read1() if self._answer is not None else self._raw.read1(READ_BYTES)
        except _FAILURES as error:
            self._run.check()
            raise UpstreamFailed(_failure(error)) from None
        if not piece:
            self._run.check()  # an end that was made here looks like one that the upstream made
        self._complete = not piece
        self._has_been_read = True
        return piece

    @property
    def can_be_carried(self) -> bool:
        """Whether `read_now` may follow: not before a `read_some`, which takes what http.client has in its buffer."""
        return self._has_been_read and self._answer is not None and self._answer.fp is not None and self._run.held() is not None

    def fileno(self) -> int:
        """The run's: http.client closes its own with the last byte of a connection that is to be closed then."""
        held = self._run.held()
        assert held is not None, "it was let go in the middle"
        return held

    @property
    def has_more(self) -> bool:
        """TLS holds some that the socket does not show any more."""
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0

    def read_now(self, deadline_at_s: float) -> bytes | None:
        """As `read_some`, without waiting: None where nothing has come."""
        assert self._answer is not None and self._socket is not None
        try:
            while self._answer.fp is not None:
                if piece := self._answer.take(self._received_now(self._socket)):
                    return piece
        except (BlockingIOError, ssl.SSLWantReadError):
            if time.monotonic() > deadline_at_s:
                raise UpstreamFailed(Failure("timeout", "no output in time")) from None
            return None
        except _FAILURES as error:
            self._run.check()
            raise UpstreamFailed(_failure(error)) from None
        self._run.check()
        self._complete = True
        return b""

    def _received_now(self, connection: socket.socket) -> bytes:
        if self._set_s != 0.0:
            self._set_s = 0.0
            connection.settimeout(0.0)
        return connection.recv(READ_BYTES)

    def _wait_at_most(self, left_s: float) -> None:
        """Set the socket's time-out where it is not about right already: it is a system call, for each chunk otherwise."""
        # urllib3 gives the connection back by itself with the body's last byte: its socket may be another's by now.
        if self._socket is None or self._raw.connection is None:
            return
        if self._set_s is None or not left_s <= self._set_s <= 1.05 * left_s:
            self._set_s = left_s * 1.02
            self._socket.settimeout(self._set_s)

    def read_all(self, deadline_at_s: float, limit_bytes: int) -> bytes:
        """The whole body, or its first `limit_bytes`. Raises UpstreamFailed."""
        body = bytearray()
        while len(body) < limit_bytes and (piece := self.read_some(deadline_at_s)):
            body += piece
        return bytes(body[:limit_bytes])

    def read_to_end(self, deadline_at_s: float) -> None:
        """Take what is left, so that the connection can be used again."""
        try:
            while self.read_some(deadline_at_s):
                pass
        except UpstreamFailed:
            self._complete = False

    def __enter__(self) -> Response:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._run.let_go()
        if self._complete and not (self._answer is not None and self._answer.overran):
            self._raw.release_conn()
        else:
            self._raw.close()


def _tls_context(ca_bundle: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_bundle)
    except OSError as error:
        raise BackendUnusable(f"CA_BUNDLE should be a file of certificates (PEM): {error}", permanent=True) from None


def _failure(error: BaseException) -> Failure:
    cause = getattr(error, "reason", None) or error
    return Failure(_kind(cause if isinstance(cause, BaseException) else error), f"{type(error).__name__}: {error}")


def _kind(error: BaseException) -> Kind:
    kinds: list[tuple[tuple[type[BaseException], ...], Kind]] = [
        ((NameResolutionError,), "unresolved"),
        ((SSLError, ssl.SSLError), "tls"),
        ((NewConnectionError, ConnectionRefusedError), "refused"),  # before the next: urllib3 makes it a kind of time-out
        ((ConnectTimeoutError, ReadTimeoutError, TimeoutError), "timeout"),
        ((ProtocolError, http.client.HTTPException, OSError), "reset"),
    ]
    for classes, kind in kinds:
        if isinstance(error, classes):
            return kind
    return "garbled"
