"""A real child with a model server of its own: what goes through untouched, and a server that no longer serves."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import psutil
import pytest

from ipc.messages import Ready, Unusable
from tests.real.crew import Backends, settings, task
from tests.real.processes import wait_until
from tests.real.requester import Requester

SERVER = f"{shlex.quote(sys.executable)} -m tests.real.upstream --port {{port}}"


@pytest.fixture(scope="module")
def requester() -> Iterator[Requester]:
    with Requester() as requester:
        yield requester


@pytest.fixture(scope="module")
def shared(requester: Requester) -> Iterator[Backends]:
    with Backends(settings(NODE_TYPE="local", MODEL_COMMAND=SERVER, READ_TIMEOUT_S="5")) as backend:
        yield backend


@pytest.fixture
def fresh() -> Iterator[Backends]:
    with Backends(settings(NODE_TYPE="local", MODEL_COMMAND=SERVER, READ_TIMEOUT_S="5")) as backend:
        yield backend


def server_of(backend: Backends) -> psutil.Process:
    """The model server of the child that is there now."""
    child = psutil.Process(backend.child.process.pid)
    return next(p for p in child.children(recursive=True) if p.cmdline()[1:3] == ["-m", "tests.real.upstream"])


def told(server: psutil.Process, method: str, path: str, body: object = None) -> object:
    url = f"http://127.0.0.1:{server.cmdline()[server.cmdline().index('--port') + 1]}{path}"
    data = None if body is None else msgspec.json.encode(body)
    with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=10) as answer:
        return msgspec.json.decode(answer.read())


# what goes through untouched

WANTED: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}],
    "tool_choice": "auto", "response_format": {"type": "json_object"}, "logprobs": True, "top_logprobs": 3, "seed": 1.50,
    "chat_template_kwargs": {"enable_thinking": True}, "x_unknown": {"kept": [1, None, "ü"]},
}  # fmt: skip


def test_a_body_reaches_the_model_as_it_was_asked(shared: Backends, requester: Requester) -> None:
    assert shared.run(task(requester, "mock", stream=False, **WANTED)).end == "answered"
    requests = told(server_of(shared), "GET", "/requests")
    assert isinstance(requests, list)
    body = requests[-1]["body"]
    assert {name: body[name] for name in WANTED} == WANTED
    assert (body["model"], body["stream"], body["stream_options"]) == ("gpt-test", True, {"include_usage": True})


def choices(frames: list[dict[str, object]], field: str) -> list[object]:
    data = [frame["data"]["choices"][0] for frame in frames if frame.get("data") and frame["data"]["choices"]]  # type: ignore[index]
    return [found for choice in data if (found := choice.get(field) or choice["delta"].get(field))]


def test_tool_calls_reasoning_and_logprobs_come_as_the_model_gave_them(shared: Backends, requester: Requester) -> None:
    streamed = {name: task(requester, name, stream=True) for name in ("tools", "reasoning", "logprobs")}
    for asked in streamed.values():
        assert shared.run(asked).end == "answered"
    frames = {name: requester.stream(asked.request_id) for name, asked in streamed.items()}
    calls = choices(frames["tools"], "tool_calls")
    assert len(calls) > 1 and "function" in str(calls[0]) and choices(frames["tools"], "finish_reason") == ["tool_calls"]
    assert choices(frames["reasoning"], "reasoning_content") == ["I", " think"]
    assert [found["content"][0]["logprob"] for found in choices(frames["logprobs"], "logprobs")] == [-0.25] * 8  # type: ignore[index]
    whole = task(requester, "tools", stream=False)
    assert shared.run(whole).end == "answered"
    (call,) = requester.posts(whole.request_id)[0].json["data"]["choices"][0]["message"]["tool_calls"]
    assert call["type"] == "function" and msgspec.json.decode(call["function"]["arguments"])


# an answer without an end, and one that is no text


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_never_ends_is_ended_with_an_error(requester: Requester, stream: bool) -> None:
    given = settings(NODE_TYPE="local", MODEL_COMMAND=SERVER, GENERATION_TIMEOUT_S="0.5" if stream else "900")
    with Backends(given) as backend:
        asked = task(requester, "mock?tokens=100000&gap=20ms", stream=stream, ttl_s=60 if stream else 3)
        outcome = backend.run(asked, 20)
        assert outcome.end == "failed" and outcome.error is not None and outcome.error["code"] == "upstream_endless"
        assert "max_tokens" in outcome.error["message"] and ("GENERATION_TIMEOUT_S" in outcome.error["message"]) == stream
        assert outcome.tokens_source == "estimated" and outcome.completion_tokens > 0
        last = requester.stream(asked.request_id)[-1]["data"] if stream else requester.posts(asked.request_id)[0].json["data"]
        assert last["error"] == outcome.error
        wait_until(lambda: told(server_of(backend), "GET", "/stats")["in_flight"] == 0, within_s=10, what="end of the generation")  # type: ignore[index]


# a server that no longer serves


def killed(server: psutil.Process) -> None:
    server.kill()


def stopped(server: psutil.Process) -> None:
    server.suspend()


def unhealthy(server: psutil.Process) -> None:
    told(server, "PUT", "/everybody", {"behaviour": "err-500"})


def breaking_off(server: psutil.Process) -> None:
    """Its /health is well; a request finds out."""
    told(server, "PUT", "/everybody", {"behaviour": "reset"})


FAULTS: dict[Callable[[psutil.Process], None], str] = {
    killed: "was killed by signal SIGKILL", stopped: "it is stopped (SIGSTOP)", unhealthy: "answers with status 500",
    breaking_off: "breaks off each request",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_server_that_no_longer_serves_is_replaced(fresh: Backends, requester: Requester, fault: Callable[[psutil.Process], None]) -> None:
    server = server_of(fresh)
    running = fresh.send(task(requester, "never", stream=False))
    wait_until(lambda: told(server, "GET", "/stats")["in_flight"] == 1, within_s=10, what="a request at the model")  # type: ignore[index]
    fault(server)
    if fault is breaking_off:
        fresh.send(task(requester, "mock", stream=False))
    fresh.until(lambda: fresh.dead, 20, "end of the child")
    (words,) = [message for _, message, _ in fresh.said if isinstance(message, Unusable)]
    assert FAULTS[fault] in words.message and not words.permanent and "| http://127.0.0.1" in words.message, "with its last lines"
    assert fresh.outcome(running).end == "retry", "it goes on elsewhere"
    wait_until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, within_s=10, what="end of the server")
    fresh.crew.start_missing()
    fresh.until(lambda: fresh.crew.children() and fresh.child.ready, 30, "a new child")
    assert fresh.run(task(requester, stream=True)).end == "answered"


def test_one_failed_request_is_no_reason_to_replace_it(fresh: Backends, requester: Requester) -> None:
    outcomes = [fresh.run(task(requester, behaviour, stream=False)).end for behaviour in ("err-500", "reset", "garbage", "err-400")]
    assert outcomes[:2] == ["retry", "retry"] and outcomes[3] == "failed"
    wait_until(lambda: told(server_of(fresh), "GET", "/stats")["received"] > 4, within_s=10, what="the child's own question")  # type: ignore[index]
    assert fresh.run(task(requester, stream=False)).end == "answered" and not fresh.dead


def test_only_the_crashed_replica_is_started_again(requester: Requester) -> None:
    given = settings(NODE_TYPE="local", MODEL_COMMAND=f"{SERVER} --slots 2", GPU_IDS="0,1")
    with Backends(given, count=2) as backend:
        first, second = backend.crew.children()
        servers = [psutil.Process(child.ready.pids[1]) for child in (first, second) if child.ready]
        assert [server.environ()["CUDA_VISIBLE_DEVICES"] for server in servers] == ["0", "1"]
        running = backend.send(task(requester, "mock?latency=1s", stream=False), second)
        os.kill(servers[0].pid, signal.SIGKILL)
        backend.until(lambda: backend.dead, 20, "end of the one child")
        backend.crew.start_missing()
        backend.until(lambda: sum(isinstance(m, Ready) for _, m, _ in backend.said) == 3, 30, "its replacement")
        assert backend.outcome(running).end == "answered" and servers[1].is_running()
        assert backend.run(task(requester, stream=False)).end == "answered"
