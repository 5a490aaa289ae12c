"""Each engine for real: llama.cpp from its wheel, a llamafile, a command of one's own; and what their models do wrong."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends import engine
from backends.modelserver import ModelServer
from ipc.messages import Ready
from tests.process.test_modelserver import ask, settings
from tests.real import crew
from tests.real.crew import Backends, task
from tests.real.llamafile import LlamafileUnavailable, llamafile, with_model
from tests.real.requester import Requester
from tests.real.tiny_gguf import tokens, write

XLLAMA = f"{shlex.quote(sys.executable)} -P {shlex.quote(str(engine.ROOT / 'backends' / 'xllama.py'))}"
SAYS = "the node reads a request"
CONTEXT = 256  # llama.cpp takes no other than multiples of it


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def real_llamafile() -> Path:
    try:
        return llamafile()
    except LlamafileUnavailable as why:
        if os.environ.get("CI") == "true":
            pytest.fail(str(why))
        pytest.skip(str(why))


@pytest.fixture
def start() -> Iterator[Callable[..., ModelServer]]:
    started: list[ModelServer] = []

    def begin(**variables: str) -> ModelServer:
        started.append(ModelServer(settings(**variables), 0, print))
        started[-1].start()
        return started[-1]

    yield begin
    for server in started:
        server.stop(1.0)


def said(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def test_llama_cpp_runs_a_gguf_file(start: Callable[..., ModelServer], tiny: Path) -> None:
    server = start(MODEL_PATH=str(tiny), MAX_PROCESS_NUM="3", UPSTREAM_MODEL="org/tiny")
    answer = ask(server, "hello the")
    assert server.slots == 3 and SAYS in said(answer) and answer["model"] == "org/tiny"
    assert answer["usage"]["completion_tokens"] == 24


def test_a_command_of_ones_own_has_its_places_filled_in(start: Callable[..., ModelServer], tiny: Path) -> None:
    command = f"{XLLAMA} --model {{model}} --port {{port}} --slots 2 --context {CONTEXT} --alias on-{{gpu}}"
    server = start(MODEL_COMMAND=command, MODEL_PATH=str(tiny), GPU_IDS="3,GPU-b", LOCAL_REPLICAS="1")
    answer = ask(server, "hello the")
    assert server.slots == 2 and SAYS in said(answer) and answer["model"] == "on-3,GPU-b"


def test_a_llamafile_brings_its_own_model(start: Callable[..., ModelServer], tiny: Path, real_llamafile: Path, tmp_path: Path) -> None:
    server = start(MODEL_PATH=str(with_model(tiny, tmp_path / "tiny.llamafile")), MAX_PROCESS_NUM="2")
    assert SAYS in said(ask(server, "hello the"))


def test_a_llamafile_runs_another_model(requester: Requester, tiny: Path, real_llamafile: Path) -> None:
    """Its streams have neither [DONE] nor usage."""
    command = f"sh {real_llamafile} --server --nobrowser --host 127.0.0.1 --port {{port}} -m {{model}} -c 512"
    with Backends(crew.settings(NODE_TYPE="local", MODEL_COMMAND=command, MODEL_PATH=str(tiny))) as backend:
        streamed, whole = task(requester, stream=True, max_tokens=12), task(requester, stream=False, max_tokens=12)
        for asked in (streamed, whole):
            outcome = backend.run(asked, 30)
            assert outcome.end == "answered" and outcome.completion_tokens >= 11
        assert SAYS in said(requester.posts(whole.request_id)[0].json["data"])


# what models do wrong, with llama.cpp as it is


@pytest.fixture(scope="module")
def requester() -> Iterator[Requester]:
    with Requester() as requester:
        yield requester


@pytest.fixture(scope="module")
def child(tiny: Path) -> Iterator[Backends]:
    command = f"{XLLAMA} --model {{model}} --port {{port}} --slots 2 --context {CONTEXT}"
    with Backends(crew.settings(NODE_TYPE="local", MODEL_COMMAND=command, MODEL_PATH=str(tiny))) as backend:
        yield backend


def test_its_slots_are_all_that_it_is_given(child: Backends) -> None:
    """What would wait there can be had by other nodes."""
    child.turn()
    assert [message.slots for _, message, _ in child.said if isinstance(message, Ready)] == [2] and child.child.capacity == 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_prompt_that_exceeds_the_context_is_refused_in_words(child: Backends, requester: Requester, stream: bool) -> None:
    asked = task(requester, stream=stream, messages=[{"role": "user", "content": "the node " * CONTEXT}])
    outcome = child.run(asked)
    assert outcome.end == "failed" and outcome.error is not None
    assert outcome.error["type"] == "exceed_context_size_error" and str(CONTEXT) in outcome.error["message"]
    told = requester.stream(asked.request_id)[-1]["data"] if stream else requester.posts(asked.request_id)[0].json["data"]
    assert told["error"] == outcome.error


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_reaches_the_end_of_the_context_says_so(child: Backends, requester: Requester, stream: bool) -> None:
    """The tiny model never comes to an end by itself."""
    asked = task(requester, stream=stream)
    outcome = child.run(asked)
    assert outcome.end == "answered" and 0 < outcome.completion_tokens < CONTEXT
    frames = requester.stream(asked.request_id) if stream else []
    reasons = [frame["data"]["choices"][0]["finish_reason"] for frame in frames if frame.get("data")]
    whole = [] if stream else [requester.posts(asked.request_id)[0].json["data"]["choices"][0]["finish_reason"]]
    assert [*filter(None, reasons), *whole] == ["length"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_model_that_gives_no_text_comes_to_a_clear_end(child: Backends, requester: Requester, stream: bool) -> None:
    """Bytes that are no UTF-8, as a broken or badly quantised model puts out."""
    nonsense = [name for name, _ in tokens()].index("<0xFF>")
    asked = task(requester, stream=stream, logit_bias={str(nonsense): 100}, max_tokens=12)
    outcome = child.run(asked)
    assert outcome.end == "answered"
    last = requester.stream(asked.request_id) if stream else [requester.posts(asked.request_id)[0].json]
    msgspec.json.encode(last).decode()
    after = child.run(task(requester, stream=True, max_tokens=4))
    assert (after.end, after.error) == ("answered", None) and not child.dead


def test_json_mode_and_logprobs_are_the_models_own(child: Backends, requester: Requester) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["the"]}}, "required": ["a"], "additionalProperties": False}
    asked = task(requester, stream=False, logprobs=True, top_logprobs=2, max_tokens=60,
                 response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}})  # fmt: skip
    assert child.run(asked).end == "answered"
    choice = requester.posts(asked.request_id)[0].json["data"]["choices"][0]
    assert msgspec.json.decode(choice["message"]["content"]) == {"a": "the"}
    assert all(len(each["top_logprobs"]) == 2 for each in choice["logprobs"]["content"])
