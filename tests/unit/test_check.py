"""What `--check` says of the topic of the usage records."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from config import Settings
from supervision.check import _records


class AdminHandler(BaseHTTPRequestHandler):
    """Pulsar's admin address, where one token may ask for one topic."""

    def do_GET(self) -> None:
        known = {"/admin/v2/persistent/public/default/res-read/subscriptions": ["billing"]}
        status = 200 if self.path in known else 404
        if self.headers["Authorization"] != "Bearer t-1":
            status = 401
        body = json.dumps(known.get(self.path, [])).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: a passing test is silent."""


@pytest.fixture
def admin_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), AdminHandler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("topic", "token", "grade", "words"),
    [
        ("res-read", "t-1", "ok", "read by billing"),
        ("res-other", "t-1", "warning", "nothing subscribes"),
        ("res-read", "wrong", "warning", "401"),  # which is no reason to say that nothing subscribes
    ],
)
def test_who_reads_the_records(admin_url: str, topic: str, token: str, grade: str, words: str) -> None:
    found = _records(Settings(model_name="m", pulsar_admin_url=admin_url, pulsar_token=token, res_topic_name=topic))
    assert [g for g, _ in found] == [grade] and words in found[0][1]


def test_an_admin_address_that_is_not_there() -> None:
    found = _records(Settings(model_name="m", pulsar_admin_url="http://127.0.0.1:1"))
    assert found[0][0] == "warning" and "no usable answer" in found[0][1]
