"""Connections to an upstream that a run holds while it uses them, so that its end shuts them wherever it waits."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from answers.run import Run
from backends.answer import Answer

CONNECT_TIMEOUT_S = 10.0  # where nobody says another
_of_this_thread: ContextVar[Run | None] = ContextVar("_of_this_thread", default=None)


@contextlib.contextmanager
def used_by(run: Run) -> Iterator[None]:
    """Connections that this thread makes or takes from a pool meanwhile are held by the run, and stay so."""
    token = _of_this_thread.set(run)
    try:
        yield
    finally:
        _of_this_thread.reset(token)


class _Held(HTTPConnection):
    """live_socket: http.client forgets its own as soon as a server announces `Connection: close`."""

    response_class = Answer
    live_socket: socket.socket | None = None
    _run: Run | None = None
    _hold: socket.socket | None = None

    def request(self, *arguments: Any, **named: Any) -> None:
        if self.sock is not None:  # kept from another request; else `_new_conn` is still to come
            self._note(self.sock)
            self.sock.settimeout(self.timeout)  # it has the one of that request's last read
        super().request(*arguments, **named)

    def connect(self) -> None:
        super().connect()
        self.live_socket = self.sock
        assert self.live_socket is not None
        self.live_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _note(self, used: socket.socket) -> None:
        """Raises what the run was ended for. The run before lets go: urllib3 takes a connection back without telling it."""
        if self._run is not None and self._hold is not None:
            self._run.let_go(self._hold)
        self._run = _of_this_thread.get()
        self._hold = None if self._run is None else self._run.hold(used)

    def _new_conn(self) -> socket.socket:
        """As urllib3's, with one deadline for all addresses, and held while it connects."""
        try:
            return self._connected()
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(self, f"Connection to {self.host} timed out. (connect timeout={self.timeout})") from error
        except OSError as error:
            raise NewConnectionError(self, f"Failed to establish a new connection: {error}") from error

    def _connected(self) -> socket.socket:
        """To the first address that answers; each has its share of the time. Raises OSError."""
        places = socket.getaddrinfo(self.host.strip("[]"), self.port, 0, socket.SOCK_STREAM)
        timeout_s = self.timeout if isinstance(self.timeout, int | float) else CONNECT_TIMEOUT_S
        give_up_at_s = time.monotonic() + timeout_s
        failure: OSError = OSError("the name resolves to no address")
        for left, (family, kind, protocol, _, address) in zip(range(len(places), 0, -1), places, strict=True):
            made = socket.socket(family, kind, protocol)
            made.settimeout(max(0.01, (give_up_at_s - time.monotonic()) / left))
            try:
                self._note(made)
                made.connect(address)
                return made
            except OSError as error:
                failure = error
                made.close()
            except BaseException:
                made.close()
                raise
        raise failure


class PlainConnection(_Held):
    pass


class TlsConnection(_Held, HTTPSConnection):
    pass
