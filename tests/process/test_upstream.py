"""The test upstream itself: what other tests rely on."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import pytest
import urllib3

from tests.real.processes import wait_until
from tests.real.upstream import Upstream
from tests.real.upstream.failures import FAILURES
from tests.real.upstream.streams import BEHAVIOURS

HTTP = urllib3.PoolManager(maxsize=256, retries=False, timeout=10)
HANGS = {"never", "never-after-headers", "keep-alives", "hang-midstream", "exit"}
BROKEN = {"reset", "close", "reset-midstream", "close-midstream"}
DEADLY = {"kill", "kill-midstream"}  # to whoever asks


def post(upstream: Upstream, behaviour: str, *, stream: bool = False, **more: Any) -> urllib3.BaseHTTPResponse:
    body = {"model": "m", "mock": behaviour, "stream": stream, "messages": [{"role": "user", "content": "hello there"}]} | more
    return HTTP.request("POST", f"{upstream.url}/v1/chat/completions", json=body)


def events(text: str) -> list[str]:
    """The data of each event, as the HTML standard joins it."""
    blocks = text.replace("\r\n", "\n").split("\n\n")
    joined = ["\n".join(line[5:].removeprefix(" ") for line in block.split("\n") if line.startswith("data:")) for block in blocks]
    return [data for data in joined if data]


def text_of(answer: urllib3.BaseHTTPResponse) -> str:
    chunks = [json.loads(data) for data in events(answer.data.decode()) if data != "[DONE]"]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])


def test_whole_and_streamed_answers_report_their_tokens(upstream: Upstream) -> None:
    whole = post(upstream, "mock?tokens=3").json()
    assert whole["choices"][0]["message"]["content"] == "t0 t1 t2"
    streamed = post(upstream, "mock?tokens=3", stream=True, stream_options={"include_usage": True})
    assert text_of(streamed) == "t0 t1 t2"
    *_, last, done = events(streamed.data.decode())
    assert (json.loads(last)["choices"], json.loads(last)["usage"], done) == ([], whole["usage"], "[DONE]")
    stats = upstream.stats()
    assert (stats["answered"], stats["prompt_tokens"], stats["completion_tokens"], stats["in_flight"]) == (2, 4, 6, 0)
    assert upstream.requests()[-1]["body"]["messages"][0]["content"] == "hello there"


@pytest.mark.parametrize("behaviour", ["crlf", "comments", "unknown-fields", "no-space", "multi-line-data", "one-segment", "no-done",
                                       "llamafile", "comments-first", "trickle", "only-stream"])  # fmt: skip
def test_dialects_say_the_same(upstream: Upstream, behaviour: str) -> None:
    assert text_of(post(upstream, f"{behaviour}?tokens=4", stream=True)) == "t0 t1 t2 t3"


def test_odd_borders_split_characters(upstream: Upstream) -> None:
    assert text_of(post(upstream, "odd-borders?tokens=3", stream=True)).count("é🙂") >= 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("behaviour", sorted(BEHAVIOURS.keys() - HANGS - BROKEN - DEADLY))
def test_every_behaviour_ends(upstream: Upstream, behaviour: str, stream: bool) -> None:
    assert post(upstream, behaviour, stream=stream).status in (200, 400)


@pytest.mark.parametrize("behaviour", sorted(FAILURES))
def test_every_failure_has_its_status(upstream: Upstream, behaviour: str) -> None:
    answer = post(upstream, behaviour)
    assert answer.status == FAILURES[behaviour].status
    assert b"{key}" not in answer.data and b"{model}" not in answer.data
    assert ("retry-after" in answer.headers) == ("retry-after" in FAILURES[behaviour].headers)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("behaviour", sorted(BROKEN))
def test_broken_answers_break_the_connection(upstream: Upstream, behaviour: str, stream: bool) -> None:
    with pytest.raises(urllib3.exceptions.ProtocolError):
        post(upstream, behaviour, stream=stream)
    upstream.wait_for(lambda stats: stats["failed"] == 1 and stats["in_flight"] == 0)


@pytest.mark.parametrize("behaviour", sorted(HANGS - {"exit"}))
def test_a_client_that_leaves_is_noticed(upstream: Upstream, behaviour: str) -> None:
    body = json.dumps({"model": behaviour, "stream": True, "messages": []}).encode()
    host, port = upstream.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        upstream.wait_for(lambda stats: stats["in_flight"] == 1)
    upstream.wait_for(lambda stats: stats["cancelled"] == 1 and stats["in_flight"] == 0)


def test_a_failure_may_pass(upstream: Upstream) -> None:
    assert [post(upstream, "err-500?times=2&id=a").status for _ in range(4)] == [500, 500, 200, 200]


def test_everybody_fails_until_told_otherwise(upstream: Upstream) -> None:
    upstream.everybody("err-401")
    assert post(upstream, "mock").status == 401
    assert HTTP.request("GET", f"{upstream.url}/v1/models").status == 401
    upstream.everybody("")
    assert post(upstream, "mock").status == 200


def test_a_wrong_key_is_refused_and_masked() -> None:
    with Upstream(key="sk-right") as own:
        answer = HTTP.request("POST", f"{own.url}/v1/chat/completions", json={}, headers={"Authorization": "Bearer sk-wrong-0123456789"})
        assert answer.status == 401 and b"sk-wrong" in answer.data and b"0123456789" not in answer.data


def test_two_hundred_streams_at_once(upstream: Upstream) -> None:
    answers: list[str] = []
    streams = [threading.Thread(target=lambda: answers.append(text_of(post(upstream, "mock?latency=1s&tokens=5", stream=True))))
               for _ in range(200)]  # fmt: skip
    for stream in streams:
        stream.start()
    assert upstream.wait_for(lambda stats: stats["peak_in_flight"] >= 150, within_s=20)
    for stream in streams:
        stream.join(30)
    assert answers == ["t0 t1 t2 t3 t4"] * 200


def test_it_comes_back_on_its_port(upstream: Upstream) -> None:
    with Upstream() as own:
        url = own.url
        own.stop()
        with pytest.raises(urllib3.exceptions.HTTPError):
            post(own, "mock")
        assert own.start().url == url and post(own, "mock").status == 200


def test_a_crash_ends_the_server() -> None:
    with Upstream() as own:
        with pytest.raises(urllib3.exceptions.ProtocolError):
            post(own, "exit")
        wait_until(lambda: own.exit_status is not None, within_s=10, what="end of the upstream")
        assert own.exit_status == 139
