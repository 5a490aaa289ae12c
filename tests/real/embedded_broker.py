"""The embedded broker as a process of its own, with PulsarServer's interface: the same tests run on both. And a client
that speaks the protocol by hand."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from broker.pulsar_pb2 import BaseCommand, CommandConnect, CommandMessage, CommandPing
from broker.wire import Frame, FrameReader, encode, parse_command
from tests.real.processes import end_group, free_port, start_bound, wait_until

_START_DEADLINE_S = 20.0


class EmbeddedBroker:
    """One broker. `start`, `stop` and `kill` may follow each other: ports and data stay the same until `close`."""

    def __init__(self, *, token_authentication: bool = False) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="workernode-broker-"))
        self._log = self._folder / "log"
        self.data = self._folder / "data"
        self._port, self._web_port = free_port(), free_port()
        self.url = f"pulsar://127.0.0.1:{self._port}"
        self.admin_url = f"http://127.0.0.1:{self._web_port}"
        self._token = os.urandom(16).hex() if token_authentication else ""
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def start(self) -> EmbeddedBroker:
        """Returns once clients are served. From the main thread: the broker dies with the thread that started it."""
        if self.alive:
            raise RuntimeError("this broker runs already")
        self._process = start_bound(self.command(), log=self._log)
        try:
            wait_until(self._ready, within_s=_START_DEADLINE_S, what="ready broker", every_s=0.02)
        except (TimeoutError, RuntimeError) as error:
            self.kill()
            raise RuntimeError(f"the broker did not start ({error}). The log's end:\n{self.log_end()}") from error
        return self

    def stop(self) -> int | None:
        """As an operator would: SIGTERM, and it closes cleanly. Returns the exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as by a crash."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Killed, its data removed."""
        self.kill()
        atexit.unregister(self.close)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("this broker does not run")
        return self._process.pid

    def token(self, subject: str) -> str:
        """The one token that this broker accepts, whoever asks."""
        if not self._token:
            raise RuntimeError("this broker asks for no token")
        return self._token

    def admin(self, method: str, path: str, body: object = None) -> Any:
        """Its administration, as `admin("GET", "persistent/public/default")`."""
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.admin_url}/admin/v2/{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def log_end(self, lines: int = 40) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:]) if self._log.exists() else ""

    def command(self) -> list[str]:
        """What starts it."""
        options = ["--port", str(self._port), "--admin-port", str(self._web_port), "--data", str(self.data)]
        if self._token:
            token_file = self._folder / "token"
            token_file.write_text(self._token + "\n")
            options += ["--token-file", str(token_file)]
        return [sys.executable, "-m", "broker", *options]

    def _ready(self) -> bool:
        if not self.alive:
            raise RuntimeError("it ended by itself")
        try:
            return "public/default" in self.admin("GET", "namespaces/public")
        except OSError:
            return False

    def _end(self, sent: signal.Signals) -> int | None:
        if self._process is None:
            return None
        code = end_group(self._process, sent, grace_s=15)
        self._process = None
        return code


class RawClient:
    """One connection by hand, for what Pulsar's client would never send or never shows. Every wait has a deadline."""

    def __init__(self, broker: EmbeddedBroker, token: str = "", *, greet: bool = True) -> None:
        host, port = broker.url.removeprefix("pulsar://").split(":")
        self.socket = socket.create_connection((host, int(port)), 10)
        self._reader = FrameReader()
        self._frames: list[Frame] = []
        self.messages: list[tuple[CommandMessage, bytes]] = []  # those that came and were not taken yet
        if greet:
            connect = CommandConnect(client_version="raw", protocol_version=19, auth_data=token.encode(), auth_method_name="token")
            self.ask(BaseCommand(type=BaseCommand.CONNECT, connect=connect))

    def send(self, command: BaseCommand, body: bytes = b"") -> None:
        self.socket.sendall(encode(command, body))

    def ask(self, command: BaseCommand, body: bytes = b"") -> BaseCommand:
        """The next answer that is no message."""
        self.send(command, body)
        return self.answer()

    def answer(self) -> BaseCommand:
        while True:
            frame = self._next_frame()
            command = parse_command(frame.command)
            if command.type != BaseCommand.MESSAGE:
                return command
            self.messages.append((command.message, frame.body))

    def settle(self) -> list[CommandMessage]:
        """All messages that what was asked so far has brought: what a turn of the broker's loop does is done after it."""
        for _ in range(2):
            assert self.ask(BaseCommand(type=BaseCommand.PING, ping=CommandPing())).type == BaseCommand.PONG
        found, self.messages = self.messages, []
        return [message for message, _ in found]

    def closed(self) -> bool:
        """Whether the broker closes the connection, within a few seconds; answers before it are read away."""
        self.socket.settimeout(5)
        try:
            while self.socket.recv(65536):
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        return True

    def close(self) -> None:
        self.socket.close()

    def _next_frame(self) -> Frame:
        while not self._frames:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("the broker closed the connection")
            self._frames += self._reader.feed(data)
        return self._frames.pop(0)
