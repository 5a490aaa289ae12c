"""Keys of the gateway's clients: who is let in, what the others are told, and a file that changes."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

import config
from gateway import keys as keys_module
from gateway import server
from gateway.keyfile import digests_in
from gateway.keys import Keys
from tests.unit.gateway_fakes import COMPLETION, Bench, running, until

FIRST, SECOND, HASHED = "sk-first-0123456789", "sk-second-0123456789", "sk-hashed-0123456789"


def write(path: Path, *lines: str) -> None:
    """As a careful hand does: in one go, so that nobody reads half of it."""
    fresh = path.with_suffix(".new")
    fresh.write_text("\n".join(lines) + "\n")
    os.replace(fresh, path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    write(path, "# clients", "", f"  {FIRST}  # of the first", f"sha256:{hashlib.sha256(HASHED.encode()).hexdigest()}")
    return path


@pytest.fixture
def bench(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(keys_module, "LOOK_EACH_S", 0.0)
    with running(keys=Keys(str(path))) as bench:
        yield bench


def listed(bench: Bench, authorization: str | None) -> int:
    headers = {} if authorization is None else {"Authorization": authorization}
    return bench.http.request("GET", f"{bench.url}/v1/models", headers=headers).status


def test_a_key_lets_in(bench: Bench) -> None:
    for key in (FIRST, HASHED):
        client = openai.OpenAI(base_url=f"{bench.url}/v1", api_key=key, max_retries=0)
        messages = [{"role": "user", "content": "?"}]
        waiting = bench.pool.submit(client.chat.completions.create, model="m", messages=messages)  # type: ignore[arg-type]
        request = bench.queue.next()
        assert key not in json.dumps(request.metadata)
        bench.answer(request, COMPLETION)
        assert waiting.result().choices[0].message.content == "Paris"
    assert listed(bench, f"bearer  {FIRST} ") == 200


@pytest.mark.parametrize(
    "authorization", ["Bearer sk-wrong-0123456789", f"Bearer {FIRST}x", f"Bearer {FIRST[:-1]}", f"Bearer {SECOND}", "Bearer é"]
)
def test_a_wrong_key_is_refused_as_openai_does(bench: Bench, authorization: str) -> None:
    response = bench.http.request("GET", f"{bench.url}/v1/models", headers={"Authorization": authorization})
    error = json.loads(response.data)["error"]
    assert (response.status, error["type"], error["code"]) == (401, "invalid_request_error", "invalid_api_key")
    assert authorization.split()[1] not in response.data.decode()
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("authorization", [None, "", "Bearer", f"Basic {FIRST}", FIRST, f"Bearer {FIRST} x"])
@pytest.mark.parametrize("origin", [{"Origin": "https://a.example"}, {}], ids=["browser", "program"])
def test_a_missing_key_is_told_of(bench: Bench, authorization: str | None, origin: dict[str, str]) -> None:
    headers = origin | ({} if authorization is None else {"Authorization": authorization})
    for path in ("/v1/chat/completions", "/api/v1/chat/completions", "/v1/anything"):
        response = bench.http.request("POST", bench.url + path, body=b"{}", headers=headers)
        error = json.loads(response.data)["error"]
        assert (response.status, error["code"]) == (401, None) and "Authorization: Bearer" in error["message"]
        if origin:
            assert response.headers["access-control-allow-origin"] == "*"  # a page can read why
    with pytest.raises(openai.AuthenticationError):
        bench.client.models.list()
    assert bench.queue.published.empty()


def test_nodes_health_and_preflights_need_none(bench: Bench) -> None:
    assert bench.http.request("GET", f"{bench.url}/health").status == 200
    assert bench.http.request("POST", f"{bench.url}/res", body=b'{"request_id":"none","data":{}}').status == 404
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    assert bench.http.request("OPTIONS", f"{bench.url}/v1/chat/completions", headers=asked).status == 200
    with bench.link() as link:
        assert link.is_silent()


def test_the_file_is_read_anew_when_it_changes(bench: Bench, path: Path) -> None:
    assert listed(bench, f"Bearer {SECOND}") == 401
    write(path, SECOND)
    assert listed(bench, f"Bearer {SECOND}") == 200
    assert listed(bench, f"Bearer {FIRST}") == 401


@pytest.mark.parametrize("lines", [None, ["# none"], [SECOND, "a b"]])
def test_a_file_that_cannot_be_read_changes_nothing(bench: Bench, path: Path, lines: list[str] | None) -> None:
    if lines is None:
        path.unlink()
    else:
        write(path, *lines)
    assert (listed(bench, f"Bearer {FIRST}"), listed(bench, f"Bearer {SECOND}")) == (200, 401)
    write(path, SECOND)
    assert (listed(bench, f"Bearer {FIRST}"), listed(bench, f"Bearer {SECOND}")) == (401, 200)


def test_it_is_looked_at_once_a_second_at_most(path: Path) -> None:
    keys = Keys(str(path))
    write(path, SECOND)
    assert keys.admit(FIRST.encode())
    until(lambda: keys.admit(SECOND.encode()), "the new key")


@pytest.mark.parametrize(
    ("line", "why"),
    [("two words-0123456789", "line 2: a key is printable"), ("short", "line 2: a key of fewer than 16"), ("sha256:12", "line 2: sha256:")],
)
def test_a_line_that_is_no_key_is_named_and_not_shown(tmp_path: Path, line: str, why: str) -> None:
    write(tmp_path / "keys", FIRST, line)
    with pytest.raises(ValueError, match=why) as raised:
        digests_in(str(tmp_path / "keys"))
    assert line not in str(raised.value) and FIRST not in str(raised.value)


def test_a_gateway_does_not_start_without_the_keys_it_should_have(path: Path) -> None:
    """One that is started again finds the file as it is by then."""
    settings = config.load({"PULSAR_URL": "pulsar://127.0.0.1:1", "GATEWAY_API_KEYS_FILE": str(path)}, gateway_alone=True)
    path.unlink()
    assert server.serve(settings, lambda: None, threading.Event()) == 78
