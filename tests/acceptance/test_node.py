"""The node on real parts: Pulsar, an upstream over HTTP, the official OpenAI client, processes that are killed."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import psutil
import pytest

from tests.real.brokers import Broker
from tests.real.node import NodeProcess
from tests.real.processes import wait_until
from tests.real.topics import Topics
from tests.real.upstream import Upstream

NOTHING: Mapping[str, str] = {}
QUESTION = "What is the capital of France? Answer in one sentence."


def client_of(node: NodeProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=node.base_url, api_key="unused", max_retries=0, timeout=60)


def ask(client: openai.OpenAI, model: str, text: str = "hello", **more: object) -> str:
    answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **more)  # type: ignore[call-overload]
    return str(answer.choices[0].message.content)


def stream(client: openai.OpenAI, model: str, text: str = "hello", **more: object) -> list[str]:
    chunks = client.chat.completions.create(  # type: ignore[call-overload]
        model=model, messages=[{"role": "user", "content": text}], stream=True, **more
    )
    return [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]


def fresh(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


def remote(pulsar: Broker, upstream: Upstream, model: str, more: Mapping[str, str] = NOTHING, *, gateway: bool = True) -> NodeProcess:
    variables = {
        "NODE_TYPE": "remote", "MODEL_NAME": model, "API_URL": upstream.url, "API_KEY": "sk-test-of-the-node",
        "PULSAR_URL": pulsar.url, "PULSAR_ADMIN_URL": pulsar.admin_url, "RES_TOPIC_NAME": f"res-{model}",
    }  # fmt: skip
    return NodeProcess({**variables, **more}, gateway=gateway)


@pytest.mark.whatever_queue
def test_a_local_model_answers_whole_and_streamed(pulsar: Broker) -> None:
    model = fresh("smollm2")
    variables = {"NODE_TYPE": "local", "MODEL_NAME": model, "PULSAR_URL": pulsar.url, "PULSAR_ADMIN_URL": pulsar.admin_url}
    with NodeProcess(variables, gateway=True) as node:
        client = client_of(node)
        whole = client.chat.completions.create(model=model, messages=[{"role": "user", "content": QUESTION}], temperature=0)
        assert "Paris" in str(whole.choices[0].message.content)
        assert whole.model == model, "its name, not its path on this machine"
        pieces = stream(client, model, QUESTION, temperature=0)
        assert "Paris" in "".join(pieces)
        assert len(pieces) > 3
        processes = node.tree()
        assert any("xllama" in " ".join(process.cmdline()) for process in processes)
        assert node.stop() == 0
        wait_until(lambda: not any(p.is_running() for p in processes), within_s=10, what="end of the model server")


def test_an_api_answers_and_its_usage_is_recorded_once(pulsar: Broker, upstream: Upstream) -> None:
    model = fresh("api")
    with Topics(pulsar.url, model, f"res-{model}") as topics, remote(pulsar, upstream, model) as node:
        client = client_of(node)
        answer = client.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": "one"}], extra_body={"mock": "mock?tokens=5"}
        )
        assert answer.parse().choices[0].message.content == "t0 t1 t2 t3 t4"
        assert "".join(stream(client, model, "two", extra_body={"mock": "mock?tokens=6"})) == "t0 t1 t2 t3 t4 t5"
        request_id = answer.headers["x-request-id"]
        (record,) = topics.records_of({request_id})
        wait_until(lambda: len(node.log().split(" answered in ")) == 3, within_s=10, what="both ends in the log")
        totals = upstream.stats()
        prompt_tokens = totals["prompt_tokens"] // 2
        assert record["usage"] == {"prompt_tokens": prompt_tokens, "completion_tokens": 5, "total_tokens": prompt_tokens + 5}
        assert record["tokens_source"] == "reported" and record["outcome"] == "answered" and record["model"] == model
        sent = upstream.requests()
        assert all(request["headers"]["authorization"] == "Bearer sk-test-of-the-node" for request in sent)
        assert sent[1]["body"]["stream_options"] == {"include_usage": True}
        assert "sk-test-of-the-node" not in node.log()


@pytest.mark.whatever_queue
@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        ("err-400", openai.BadRequestError),
        ("err-context", openai.BadRequestError),
        ("err-500", openai.InternalServerError),
        ("html", openai.InternalServerError),
        ("reset", openai.InternalServerError),
        ("never", openai.APIStatusError),
    ],
)
def test_the_upstreams_errors_reach_the_client_as_openais(
    node_of_errors: NodeProcess, behaviour: str, error: type[openai.APIStatusError]
) -> None:
    client = client_of(node_of_errors)
    model = node_of_errors.model
    with pytest.raises(error) as whole:
        ask(client, model, extra_body={"mock": behaviour})
    with pytest.raises(error) as streamed:
        stream(client, model, extra_body={"mock": behaviour})
    assert whole.value.body == streamed.value.body
    assert whole.value.body


@pytest.fixture(scope="module")
def node_of_errors(pulsar: Broker, _shared_upstream: Upstream) -> Iterator[NodeProcess]:
    model = fresh("errors")
    impatient = {"MAX_ATTEMPTS": "1", "FIRST_TOKEN_TIMEOUT_S": "1", "REQUEST_TTL_S": "6", "READ_TIMEOUT_S": "1"}
    node = remote(pulsar, _shared_upstream, model, impatient)
    with node as running:
        yield running


@pytest.mark.whatever_queue
def test_an_error_after_output_began_ends_the_stream_with_it(node_of_errors: NodeProcess) -> None:
    client, model, seen = client_of(node_of_errors), node_of_errors.model, []
    with pytest.raises(openai.APIError):
        for chunk in client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "x"}], stream=True, extra_body={"mock": "cut-midstream"}
        ):
            seen += [choice.delta.content for choice in chunk.choices if choice.delta.content]
    assert "".join(seen).startswith("t0")


def test_what_fails_twice_is_tried_a_third_time(pulsar: Broker, upstream: Upstream) -> None:
    model = fresh("again")
    with remote(pulsar, upstream, model) as node:
        assert ask(client_of(node), model, extra_body={"mock": "err-500?times=2&id=again"}).startswith("t0")
        assert upstream.stats()["failed"] == 2
        assert node.log().count("attempts fail and are made again") == 1


def test_a_killed_child_loses_nothing(pulsar: Broker, upstream: Upstream) -> None:
    model = fresh("killed")
    with remote(pulsar, upstream, model, {"BACKEND_PROCESSES": "2", "MAX_PROCESS_NUM": "8"}) as node, ThreadPoolExecutor(8) as threads:
        client = client_of(node)
        answers = [threads.submit(ask, client, model, str(n), extra_body={"mock": "mock?latency=2s"}) for n in range(8)]
        upstream.wait_for(lambda stats: stats["in_flight"] == 8)
        node.working_on(upstream.url).kill()
        assert all(answer.result(30).startswith("t0") for answer in answers)
        log = node.wait_log("SIGKILL", "4 requests were aboard")
        assert log.count("is ready after") >= 4  # two backends, a gateway, the replacement


def test_a_killed_node_leaves_its_requests_to_the_other(pulsar: Broker, upstream: Upstream) -> None:
    model = fresh("two")
    settings = {"MAX_PROCESS_NUM": "6", "BACKEND_PROCESSES": "2"}
    with remote(pulsar, upstream, model, settings, gateway=False) as first, remote(pulsar, upstream, model, settings) as second:
        with ThreadPoolExecutor(12) as threads:
            client = client_of(second)
            answers = [threads.submit(ask, client, model, str(n), extra_body={"mock": "mock?latency=1500ms"}) for n in range(12)]
            upstream.wait_for(lambda stats: stats["in_flight"] >= 11)  # 6 on each; a full node may hold one prefetched
            children = first.tree()
            first.kill()
            assert all(answer.result(60).startswith("t0") for answer in answers)
        wait_until(lambda: not any(p.is_running() for p in children), within_s=15, what="end of the killed node's children")


def test_sigterm_finishes_what_runs_and_exits_0(pulsar: Broker, upstream: Upstream) -> None:
    model = fresh("drain")
    with remote(pulsar, upstream, model) as node, ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(ask, client_of(node), model, extra_body={"mock": "mock?latency=1s"}) for _ in range(4)]
        upstream.wait_for(lambda stats: stats["in_flight"] == 4)
        node.signal(signal.SIGTERM)
        assert all(answer.result(30).startswith("t0") for answer in answers)
        assert node.wait() == 0


def test_what_does_not_end_in_time_goes_to_another_node(pulsar: Broker, upstream: Upstream) -> None:
    model = fresh("cut")
    with (
        remote(pulsar, upstream, model, {"DRAIN_TIMEOUT_S": "1", "MAX_PROCESS_NUM": "2"}, gateway=False) as first,
        ThreadPoolExecutor(2) as threads,
        remote(pulsar, upstream, model, {"MAX_PROCESS_NUM": "1"}) as second,
    ):
        slow = {"mock": "mock?latency=4s"}
        answers = [threads.submit(ask, client_of(second), model, str(n), extra_body=slow) for n in range(2)]
        upstream.wait_for(lambda stats: stats["in_flight"] == 2)
        first.signal(signal.SIGTERM)
        assert first.wait(10) == 0
        assert "is ended" in first.log()
        assert all(answer.result(60).startswith("t0") for answer in answers)


def test_a_second_signal_ends_at_once(pulsar: Broker, upstream: Upstream) -> None:
    model = fresh("twice")
    with remote(pulsar, upstream, model) as node, ThreadPoolExecutor(1) as threads:
        threads.submit(ask, client_of(node), model, extra_body={"mock": "mock?latency=20s"})
        upstream.wait_for(lambda stats: stats["in_flight"] == 1)
        children = node.tree()
        node.signal(signal.SIGINT)
        node.wait_log("receiving stops")
        node.signal(signal.SIGINT)
        assert node.wait(5) == 128 + signal.SIGINT
        wait_until(lambda: not any(p.is_running() for p in children), within_s=10, what="end of all children")


def test_a_supervisor_that_dies_leaves_no_process(pulsar: Broker, upstream: Upstream) -> None:
    with remote(pulsar, upstream, fresh("orphans")) as node:
        processes = node.tree()
        node.kill()
        wait_until(lambda: not any(_lives(p) for p in processes), within_s=15, what="end of all processes")


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.whatever_queue
def test_pieces_arrive_as_they_are_made(pulsar: Broker, upstream: Upstream) -> None:
    """The second half of the answer does not exist yet when the first half is here."""
    model = fresh("pace")
    with remote(pulsar, upstream, model) as node:
        chunks = client_of(node).chat.completions.create(
            model=model, messages=[{"role": "user", "content": "x"}], stream=True, extra_body={"mock": "hang-midstream"}
        )
        first = next(iter(chunks))
        assert first.choices and upstream.stats()["in_flight"] == 1
        chunks.close()


@pytest.mark.whatever_queue
def test_log_holds_no_secret_and_no_traceback(node_of_errors: NodeProcess) -> None:
    log = Path(node_of_errors.log_path).read_text()
    assert "Traceback" not in log and "sk-test-of-the-node" not in log
