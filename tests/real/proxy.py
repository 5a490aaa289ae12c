"""A TCP proxy before a Pulsar broker, that can refuse, cut, or silently swallow connections.

A broker tells its clients its own address on a lookup: the proxy puts its own in its place, which has as many digits.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType

from tests.real.processes import free_port


class Proxy:
    """`with Proxy(broker.url) as proxy:`, `proxy.url` is for clients. `swallows`: whether new connections are accepted
    and never answered."""

    def __init__(self, url: str) -> None:
        self._behind = url.removeprefix("pulsar://")
        self.port = free_port()
        self.url = f"pulsar://127.0.0.1:{self.port}"
        self.swallows = False
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._relays: list[_Relay] = []
        self._swallowed: list[_Relay] = []

    def accept(self) -> Proxy:
        """From now on; again after `refuse`."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()
        return self

    def refuse(self) -> None:
        """New connections are refused; those that are open stay."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None

    def cut(self) -> None:
        """Close all connections, at both ends."""
        for relay in self._taken():
            relay.close()

    def swallow(self) -> None:
        """The connections that are open stay open, and nothing passes through them ever again, as when a firewall has
        forgotten them."""
        for relay in self._taken():
            relay.deaf = True
            self._swallowed.append(relay)

    def forget(self) -> None:
        """The broker notices that nobody is at the other end of those that were swallowed; the clients do not yet."""
        for relay in self._swallowed:
            relay.close_broker()

    def __enter__(self) -> Proxy:
        return self.accept()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.refuse()
        self.cut()
        for relay in self._swallowed:
            relay.close()

    def _taken(self) -> list[_Relay]:
        with self._lock:
            taken, self._relays = self._relays, []
            return taken

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self._relay(client)

    def _relay(self, client: socket.socket) -> None:
        host, port = self._behind.split(":")
        try:
            broker = socket.create_connection((host, int(port)), 5)
        except OSError:
            client.close()
            return
        relay = _Relay(client, broker, self._behind.encode(), f"127.0.0.1:{self.port}".encode())
        relay.deaf = self.swallows
        with self._lock:
            self._relays.append(relay)
        relay.start()


class _Relay:
    """One connection and its other half. `deaf`: what comes is read and thrown away."""

    def __init__(self, client: socket.socket, broker: socket.socket, address: bytes, shown: bytes) -> None:
        assert len(address) == len(shown), "frames carry their lengths"
        self._client, self._broker = client, broker
        self._address, self._shown = address, shown
        self.deaf = False
        for half in (client, broker):
            half.settimeout(None)
            half.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        for halves in ((self._client, self._broker), (self._broker, self._client)):
            threading.Thread(target=self._pass_on, args=halves, daemon=True).start()

    def close(self) -> None:
        _end(self._client)
        self.close_broker()

    def close_broker(self) -> None:
        _end(self._broker)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if not self.deaf:
                    target.sendall(data.replace(self._address, self._shown))
        if not self.deaf:
            self.close()


def _end(half: socket.socket) -> None:
    with contextlib.suppress(OSError):
        half.shutdown(socket.SHUT_RDWR)
    half.close()
