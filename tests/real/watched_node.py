"""A real node with a status port and a gateway, in front of the test upstream, on a broker of its own."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import urllib3

from tests.real.embedded_broker import EmbeddedBroker
from tests.real.node import NodeProcess
from tests.real.processes import REPOSITORY, free_port

HTTP = urllib3.PoolManager(maxsize=32, retries=False, timeout=60)


class WatchedNode(NodeProcess):
    """Remote, unless `variables` say otherwise; its page's buttons kill."""

    def __init__(self, upstream_url: str, **variables: str) -> None:
        self.broker, status_port = EmbeddedBroker(), free_port()
        queue = {"PULSAR_URL": self.broker.url, "PULSAR_ADMIN_URL": self.broker.admin_url, "ON_TROUBLE": "answer"}
        remote = {"NODE_TYPE": "remote", "MODEL_NAME": "m", "API_URL": upstream_url, "BACKEND_PROCESSES": "2"}
        super().__init__({**queue, **remote, "STATUS_PORT": str(status_port), "ALLOW_KILL": "true", **variables}, gateway=True)
        self.status_page, self.chat_page = f"http://127.0.0.1:{status_port}/", f"http://127.0.0.1:{self.port}/"
        self.pages = [self.status_page, self.chat_page]

    def __enter__(self) -> WatchedNode:
        self.broker.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.broker.close()

    def ask(self, mock: str = "mock", **headers: str) -> tuple[int, str]:
        """Status and request id."""
        body = {"model": self.model, "mock": mock, "messages": [{"role": "user", "content": "hi"}]}
        response = HTTP.request("POST", f"{self.base_url}/chat/completions", json=body, headers=headers)
        return response.status, response.headers["X-Request-Id"]

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = HTTP.request("GET", f"{self.status_page}state").json()
        return found

    def metrics(self) -> str:
        return HTTP.request("GET", f"{self.status_page}metrics").data.decode()

    def where(self, request_id: str, **variables: str) -> str:
        """What the command prints."""
        command, environment = [sys.executable, "supervisor.py", "where", request_id], {**self.environment, **variables}
        done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
        assert not done.stderr, done.stderr
        return done.stdout
