"""ai.sh against a gateway that only notes what it is asked: with jo, without it, whatever the prompt holds."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.real.processes import REPOSITORY, free_port

PROMPTS = [
    "plain", "null", "1", "true", "{}", "[1]", "a=b:c", "@file", ":file", "%file", "-s", "--", "&", "*", "$HOME `id` $(id)",
    "\"quoted\" 'quoted' \\ back\\nslash \\u0041", "two\nlines,\ttab,\rreturn", "bell\x07 \x01 \x1f \x7f", "é ☃ 😀",
]  # fmt: skip


class Gateway(http.server.ThreadingHTTPServer):
    """Lists two models, answers every request; `status` is what it answers with."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 200
        self.bodies: list[Any] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Gateway

    def do_GET(self) -> None:
        self._answer(200, b'{"object":"list","data":[{"id":"first","object":"model"},{"id":"second","object":"model"}]}')

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(self.server.status, b'{"an":"answer"}')

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not into the tests' output."""


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway() as serving:
        threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield serving
        serving.shutdown()


@pytest.fixture(params=["with jo", "without jo"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A PATH of only what ai.sh needs."""
    tools = ["bash", "curl", "sed", *(["jo"] if request.param == "with jo" else [])]
    for tool in tools:
        found = shutil.which(tool)
        if found is None:
            pytest.skip(f"{tool} is not installed")
        (tmp_path / tool).symlink_to(found)
    return str(tmp_path)


def ai_sh(port: int, path: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": path, "PORT": str(port), "http_proxy": "http://127.0.0.1:9", **variables}
    return subprocess.run(
        [shutil.which("bash") or "bash", REPOSITORY / "ai.sh", *arguments],
        env=environment, cwd=path, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def test_it_asks_the_first_model_and_shows_what_curl_says(gateway: Gateway, path: str) -> None:
    asked = ai_sh(gateway.server_port, path)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout == '{"an":"answer"}\n'
    assert "> POST /v1/chat/completions" in asked.stderr and "< HTTP/1.0 200 OK" in asked.stderr
    (body,) = gateway.bodies
    assert (body["model"], body["stream"]) == ("first", False) and "France" in body["messages"][0]["content"]


def test_any_prompt_arrives_as_it_is(gateway: Gateway, path: str) -> None:
    for prompt in PROMPTS:
        assert ai_sh(gateway.server_port, path, prompt, MODEL_NAME="m").returncode == 0
        assert gateway.bodies.pop() == {"model": "m", "stream": False, "messages": [{"role": "user", "content": prompt}]}


def test_stream_words_and_a_models_name(gateway: Gateway, path: str) -> None:
    assert ai_sh(gateway.server_port, path, "stream", "two", "words", MODEL_NAME="4").returncode == 0
    assert gateway.bodies == [{"model": "4", "stream": True, "messages": [{"role": "user", "content": "two words"}]}]


def test_an_error_is_shown_and_is_the_exit_code(gateway: Gateway, path: str) -> None:
    gateway.status = 404
    asked = ai_sh(gateway.server_port, path)
    assert asked.returncode == 22 and asked.stdout == '{"an":"answer"}\n'


@pytest.mark.parametrize("variables", [{}, {"MODEL_NAME": "m"}])
def test_nobody_there(path: str, variables: dict[str, str]) -> None:
    asked = ai_sh(free_port(), path, **variables)
    assert asked.returncode == 1 and "is ./start.sh running?" in asked.stderr
