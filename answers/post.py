"""Whole answers: POST to the endpoint, over kept connections."""

from __future__ import annotations

import http.client
import io
import socket
import time
from functools import partial
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, NewConnectionError

from answers.dial import CONNECT_TIMEOUT_S, Dialer
from answers.endpoint import NotDelivered, Refused, RequesterUnknown, http_url, is_final

TAKEN_WITHIN_S = 10.0  # the whole POST, from its connection to the end of what the endpoint says
EARLY_GRACE_S = 1.0  # the requester's service registers an id only after its publish was confirmed
MAX_BODY_BYTES = 64 << 10
_FIRST_PAUSE_S = 0.02


class _InTime(io.RawIOBase):
    """A socket's reading end with a deadline for all reads together: its own time-out begins anew with each byte."""

    def __init__(self, raw: Any, of: socket.socket, left_s: float) -> None:
        self._raw, self._socket = raw, of
        self._deadline_s = time.monotonic() + left_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the endpoint takes too long to say what it says")
        self._socket.settimeout(left_s)
        read_bytes: int | None = self._raw.readinto(buffer)
        return read_bytes

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """When it is made, the socket's time-out is what urllib3 found to be left of the POST's time."""

    def __init__(self, sock: socket.socket, *arguments: Any, **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        raw = _InTime(self.fp.detach(), sock, sock.gettimeout() or TAKEN_WITHIN_S)
        self.fp = io.BufferedReader(raw)


class _PlainConnection(HTTPConnection):
    response_class = _Answer

    def __init__(self, *arguments: Any, dialer: Dialer, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._dialer = dialer

    def _new_conn(self) -> socket.socket:
        try:
            return self._dialer.connect(self._dns_host, self.port or self.default_port)
        except OSError as error:
            raise NewConnectionError(self, str(error)) from error


class _TlsConnection(_PlainConnection, HTTPSConnection):
    """As above, under HTTPS."""


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class Poster:
    """Shared by a child's threads; `threads` is how many may post to one endpoint at once over kept connections."""

    def __init__(self, threads: int, dialer: Dialer) -> None:
        self._pools = urllib3.PoolManager(
            num_pools=64, maxsize=threads, block=False, retries=False, ca_certs=dialer.ca_bundle,
        )
        classes: Any = {"http": partial(_PlainPool, dialer=dialer), "https": partial(_TlsPool, dialer=dialer)}
        self._pools.pool_classes_by_scheme = classes

    def post(self, endpoint: str, body: bytes, *, early_until_s: float) -> None:
        """Returns when the answer was taken. `early_until_s`: monotonic; until then a 404 may mean that the request
        is not registered yet. Raises RequesterUnknown, Refused (NotAllowed too), NotDelivered."""
        pause_s = _FIRST_PAUSE_S
        while (status := self._post_once(endpoint, body)) == 404:
            if time.monotonic() + pause_s > early_until_s:
                raise RequesterUnknown(f"{endpoint} does not know the request")
            time.sleep(pause_s)
            pause_s *= 1.5
        if is_final(status):
            raise Refused(f"{endpoint} refuses the answer with status {status}")
        if status != 200:
            raise NotDelivered(f"{endpoint} answered the POST with status {status}")

    def _post_once(self, endpoint: str, body: bytes) -> int:
        """The status; of the body only as much is read as it takes to use the connection again."""
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, total=TAKEN_WITHIN_S)
        headers = {"Content-Type": "application/json"}
        try:
            answer = self._pools.request(
                "POST", http_url(endpoint), body=body, headers=headers, redirect=False, preload_content=False, timeout=timeout
            )
        except (HTTPError, OSError, ValueError) as error:
            raise NotDelivered(f"{endpoint}: {type(error).__name__}: {error}") from None
        _dispose(answer)
        return answer.status


def _dispose(answer: urllib3.BaseHTTPResponse) -> None:
    """What an endpoint says beside its status is of no interest, and it may say it for ever."""
    left_bytes = MAX_BODY_BYTES
    try:
        while left_bytes > 0 and (piece := answer.read1(left_bytes, decode_content=False)):
            left_bytes -= len(piece)
    except (HTTPError, OSError, ValueError):
        left_bytes = 0
    if left_bytes > 0:
        answer.release_conn()
    else:
        answer.close()
