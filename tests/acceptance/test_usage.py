"""Usage records of real requests: every end, token for token what the upstream counted, and their reader."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from tests.real.brokers import Broker
from tests.real.node import OURS, NodeProcess
from tests.real.processes import REPOSITORY, free_port
from tests.real.requester import Requester
from tests.real.topics import Topics
from tests.real.upstream import Upstream

KEY = "sk-the-nodes-own-0123456789"


@dataclass
class Scene:
    """A remote node of a model of its own, what it needs, and commands with its environment."""

    variables: dict[str, str]
    node: NodeProcess
    topics: Topics
    requester: Requester
    upstream: Upstream

    @property
    def model(self) -> str:
        return self.node.model

    def request(self, *, stream: bool = False, requester: Requester | None = None, **body: Any) -> dict[str, Any]:
        taker = requester or self.requester
        data = {"model": self.model, "messages": [{"role": "user", "content": str(uuid.uuid4())}], **body}
        endpoint = taker.websocket_url if stream else taker.http_url
        metadata = {"headers": {"Authorization": ["Bearer of-the-requester-1"], "User-Agent": ["curl/8"]}}
        return {"request_id": str(uuid.uuid4()), "stream": stream, "endpoint": endpoint, "data": data, "metadata": metadata}


@contextlib.contextmanager
def scene_of(pulsar: Broker, upstream: Upstream, *, gateway: bool = False, **more: str) -> Iterator[Scene]:
    model = f"usage-{uuid.uuid4().hex[:8]}"
    variables = {
        "NODE_TYPE": "remote", "MODEL_NAME": model, "API_URL": upstream.url, "API_KEY": KEY, "PULSAR_URL": pulsar.url,
        "PULSAR_ADMIN_URL": pulsar.admin_url, "RES_TOPIC_NAME": f"res-{model}", **more,
    }  # fmt: skip
    topics, holding = (Topics(pulsar.url, model, f"res-{model}") for _ in range(2))
    # The broker may forget what every subscription has acknowledged; a billing system's holds it, as this one does.
    with topics, holding, Requester() as requester, NodeProcess(variables, gateway=gateway) as node:
        yield Scene(variables, node, topics, requester, upstream)


class Reader:
    """`python -m reporting.usage` with this environment."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not OURS.search(name)}
        command = [sys.executable, "-m", "reporting.usage", *arguments]
        self.process = subprocess.Popen(
            command, env=kept | variables, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        """The next of its output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def ended(self, within_s: float = 40.0) -> tuple[int, str, str]:
        """Exit code, output, errors."""
        try:
            said, errors = self.process.communicate(timeout=within_s)
        finally:
            self.process.kill()
        return self.process.returncode, said, errors


def counted(scene: Scene) -> dict[str, Any]:
    code, said, errors = Reader("--once", "--json", **scene.variables).ended()
    assert (code, errors) == (0, ""), errors
    found: dict[str, Any] = json.loads(said)
    return found


# billing

BEHAVIOURS = (
    "mock?tokens=5", "mock?tokens=17&gap=2ms", "err-500?times=1&tokens=9", "no-stream?tokens=4", "reset?times=2", "err-400", "err-context",
    "reasoning", "tools", "llamafile?tokens=6",
)  # fmt: skip



def ask(scene: Scene, number: int) -> str:
    """The request's id. Some behaviours are errors, which are ends as well."""
    client = openai.OpenAI(base_url=scene.node.base_url, api_key="unused", max_retries=0, timeout=60)
    behaviour, stream = BEHAVIOURS[number % len(BEHAVIOURS)], number // len(BEHAVIOURS) % 2 == 0
    text = f"number {number} " + "word " * (number % 7)
    raw = client.chat.completions.with_raw_response
    try:
        answer = raw.create(
            model=scene.model, messages=[{"role": "user", "content": text}], stream=stream, extra_body={"mock": behaviour}
        )
    except openai.APIStatusError as refused:
        return str(refused.response.headers["x-request-id"])
    if stream:
        assert list(answer.parse())
    return str(answer.headers["x-request-id"])


def test_the_records_add_up_to_what_the_upstream_counted(pulsar: Broker, upstream: Upstream) -> None:
    """After a calm run, token for token, requests that were tried again among them."""
    with scene_of(pulsar, upstream, gateway=True, MAX_ATTEMPTS="4") as scene, ThreadPoolExecutor(16) as threads:
        ids = set(threads.map(lambda number: ask(scene, number), range(80)))
        records = scene.topics.records_of(ids)
        assert len(ids) == len({record["record_id"] for record in records}) == 80
        upstream.wait_for(lambda stats: stats["in_flight"] == 0)
        spent = upstream.stats()
        assert spent["completion_tokens"] > 300 and spent["failed"] > 16
        kinds = ("prompt_tokens", "completion_tokens")
        assert {kind: sum(record["usage"][kind] for record in records) for kind in kinds} == {kind: spent[kind] for kind in kinds}
        assert {record["tokens_source"] for record in records} == {"reported", "none"}
        assert max(record["attempt"] for record in records) == 3
        total = counted(scene)["total"]
        assert total | {kind: spent[kind] for kind in kinds} | {"requests": 80, "estimated_tokens": 0} == total


@pytest.mark.whatever_queue
def test_what_no_upstream_reported_is_an_estimate(pulsar: Broker, upstream: Upstream) -> None:
    with scene_of(pulsar, upstream) as scene:
        cut, unasked = scene.request(stream=True, mock="cut-midstream?tokens=40"), scene.request(mock="only-stream?tokens=40")
        for request, outcome in ((cut, "failed"), (unasked, "answered")):
            scene.topics.publish(request)
            (record,) = scene.topics.records_of({request["request_id"]})
            assert (record["outcome"], record["tokens_source"]) == (outcome, "estimated")
            assert record["usage"]["completion_tokens"] > 5 and upstream.stats()["completion_tokens"] == 0
        assert counted(scene)["total"]["estimated_share"] == 1.0


# every end

NOT_TRIED_AGAIN = {"err-400": "invalid_value", "err-context": "context_length_exceeded"}


def test_every_end_has_its_record(pulsar: Broker, upstream: Upstream) -> None:
    """Each held against the schema as it is read."""
    with scene_of(pulsar, upstream, MAX_ATTEMPTS="2", REQUEST_TTL_S="8") as scene, Requester() as leaving, Requester() as away:
        away.stop()
        leaving.closes_after = 2
        lost, odd, expired = scene.request(mock="mock"), scene.request() | {"stream": "yes"}, scene.request()
        nowhere = odd | {"request_id": str(uuid.uuid4()), "endpoint": "nowhere"}
        late_and_lost = scene.request()
        scene.requester.unknown |= {lost["request_id"], late_and_lost["request_id"]}
        old = {"workernode-published-ms": str(int(time.time() * 1000) - 60_000)}
        # request → outcome, error code, whether it is a dead letter, attempt
        wanted: list[tuple[dict[str, Any], tuple[str, Any, bool, int]]] = [
            (scene.request(), ("answered", None, False, 1)),
            (scene.request(stream=True), ("answered", None, False, 1)),
            *((scene.request(mock=how), ("failed", code, False, 1)) for how, code in NOT_TRIED_AGAIN.items()),
            (scene.request(mock="err-500?times=9"), ("failed", None, True, 2)),
            (scene.request(mock="reset?times=9", stream=True), ("failed", "upstream_reset", True, 2)),
            (scene.request(mock="sse-error-midstream", stream=True), ("failed", None, False, 1)),
            (scene.request(mock="mock?tokens=200&gap=20ms", stream=True, requester=leaving), ("gone", "requester_gone", False, 1)),
            (scene.request(requester=away), ("undeliverable", "undeliverable", True, 1)),
            (lost, ("unknown", "requester_unknown", False, 1)),
            (odd, ("failed", "invalid_message", True, 1)),
            (nowhere, ("undeliverable", "invalid_message", True, 1)),
        ]  # fmt: skip
        for request, _ in wanted:
            scene.topics.publish(request)
        for request, end in ((expired, "failed"), (late_and_lost, "unknown")):
            scene.topics.publish(request, properties=old)
            wanted.append((request, (end, "request_expired", True, 1)))
        scene.topics.flush()
        records = scene.topics.records_of({request["request_id"] for request, _ in wanted}, within_s=50)
        by_id = {record["request_id"]: record for record in records}
        found = [
            (r["outcome"], r["error"] and r["error"]["code"], r["dead_lettered"], r["attempt"])
            for r in (by_id[request["request_id"]] for request, _ in wanted)
        ]
        assert found == [end for _, end in wanted]
        assert len(records) == len(by_id) == len({record["record_id"] for record in records})
        for record in records:
            took = record["durations_ms"]
            stages = [took[stage] for stage in ("waited", "prepared", "to_first_token", "generated", "delivered")]
            assert None in stages or sum(stages) == pytest.approx(took["total"], abs=0.1)
            ended_by = f"request {record['request_id']} {record['outcome']} in "
            assert scene.node.wait_log(ended_by, within_s=10).count(ended_by) == 1


# no key anywhere


@pytest.mark.whatever_queue
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_key_is_in_no_log_record_or_dead_letter(pulsar: Broker, upstream: Upstream, form: str) -> None:
    """Though a request's body holds it, and the upstream's errors and answers echo it; with DEBUG on."""
    scenery = scene_of(
        pulsar, upstream, DEBUG="true", LOG_FORMAT=form, ON_TROUBLE="answer", UPSTREAM_MODEL=f"of-{KEY}", MAX_ATTEMPTS="2",
        REQUEST_TTL_S="6",
    )  # fmt: skip
    with scenery as scene, Requester() as away:
        away.stop()
        escaped = "".join(f"\\u{ord(letter):04x}" for letter in KEY)
        content = [{"role": "user", "content": f"my key is {KEY}"}]
        requests = {
            "answered": scene.request(messages=content), "streamed": scene.request(messages=content, stream=True),
            "dead": scene.request(messages=content, mock="err-500?times=9"),
            "kept": scene.request(messages=content, requester=away), "unreadable": scene.request() | {"stream": KEY},
        }  # fmt: skip
        written = scene.request()
        for request in requests.values():
            scene.topics.publish(request)
        scene.topics.publish(json.dumps(written).replace('"messages"', f'"user": "{escaped}", "messages"').encode())
        scene.topics.records_of({request["request_id"] for request in [*requests.values(), written]}, within_s=40)
        requests["refused"] = scene.request(messages=content, mock="err-401")  # the last, as the node is in trouble from then on
        scene.topics.publish(requests["refused"])
        records = scene.topics.records_of({request["request_id"] for request in [*requests.values(), written]})
        assert KEY not in json.dumps(records) and "of-the-requester" not in json.dumps(records)
        assert {record["upstream_model"] for record in records} >= {"of-[redacted]"}
        letters = [scene.topics.dead_letter() for _ in range(3)]
        by_id = {json.loads(payload)["request_id"]: (payload, properties) for payload, properties in letters}
        assert by_id.keys() == {requests[name]["request_id"] for name in ("dead", "kept", "unreadable")}
        assert all(json.loads(payload) in requests.values() for payload, _ in letters), "the message itself stays as it was sent"
        assert KEY not in str([properties for _, properties in letters])
        assert "of-[redacted]" in by_id[requests["kept"]["request_id"]][1]["workernode-answer"]
        refused = scene.requester.posts(requests["refused"]["request_id"])[0].json["data"]["error"]
        assert refused["code"] == "invalid_api_key" and KEY not in str(refused)
        log = scene.node.wait_log(*(f"request {record['request_id']} {record['outcome']} in " for record in records))
        assert KEY not in log and escaped not in log and KEY[:-4] not in log and "of-the-requester" not in log
        assert f"request {written['request_id']} asks: " in log and "my key is [redacted]" in log
        assert f"request {requests['streamed']['request_id']} was answered: " in log and "t0 t1 t2 t3 t4 t5 t6 t7" in log
        if form == "json":
            ends = [found for found in map(json.loads, log.splitlines()) if "outcome" in found]
            assert {end["request_id"]: end["outcome"] for end in ends} == {r["request_id"]: r["outcome"] for r in records}
            assert all(isinstance(end["total_ms"], float) for end in ends) and len(ends) == len(records)


# the reader


def test_the_reader_follows_and_holds_nothing_back(pulsar: Broker, upstream: Upstream) -> None:
    with scene_of(pulsar, upstream) as scene:
        first, second = scene.request(mock="mock?tokens=7"), scene.request(mock="err-400")
        scene.topics.publish(first)
        scene.topics.records_of({first["request_id"]})
        with Reader("--follow", "--json", **scene.variables) as following, Reader("--from", "latest", **scene.variables) as late:
            seen = json.loads(following.line())
            assert late.line().split()[:2] == ["model", "outcome"]
            assert late.line().split()[:2] == ["all", "0"]
            scene.topics.publish(second)
            while seen["total"]["requests"] < 2:
                seen = json.loads(following.line())
            assert [(one["model"], one["outcome"], one["completion_tokens"]) for one in seen["sums"]] == [
                (scene.model, "answered", 7), (scene.model, "failed", 0),
            ]  # fmt: skip
            stats = pulsar.admin("GET", f"persistent/public/default/{scene.variables['RES_TOPIC_NAME']}/stats")
            readers = {name for name in stats["subscriptions"] if not name.startswith("test-")}
            assert len(readers) <= 2, "those of the readers, which end with them"
            for _ in range(3):  # the blank line, the heading, the one record
                line = late.line()
            assert line.split()[:3] == [scene.model, "failed", "1"]
            following.process.send_signal(signal.SIGINT)
            late.process.send_signal(signal.SIGTERM)
            (code, said, errors), (late_code, late_said, late_errors) = following.ended(15), late.ended(15)
        assert (code, errors, late_code, late_errors) == (0, "", 0, "")
        assert json.loads(said.splitlines()[-1])["total"]["requests"] == 2
        assert late_said.splitlines()[-1].split()[:2] == ["all", "1"]
        stats = pulsar.admin("GET", f"persistent/public/default/{scene.variables['RES_TOPIC_NAME']}/stats")
        assert all(name.startswith("test-") for name in stats["subscriptions"]), "nothing is left that would hold a backlog"


@pytest.mark.whatever_queue
def test_the_readers_mistakes_are_said_in_a_line(pulsar: Broker) -> None:
    code, said, errors = Reader("--once").ended()
    assert (code, said) == (78, "") and "PULSAR_URL should be set" in errors and errors.count("\n") == 1
    code, said, errors = Reader("--once", PULSAR_URL=f"pulsar://127.0.0.1:{free_port()}").ended()
    assert (code, said) == (1, "") and "is not to be reached" in errors and errors.count("\n") == 1
    code, said, errors = Reader("--once", PULSAR_URL=pulsar.url, RES_TOPIC_NAME=f"res-{uuid.uuid4().hex}").ended()
    assert (code, errors) == (0, "") and said.splitlines()[-1].split()[:2] == ["all", "0"], "a topic that nobody has written to"


def test_a_refused_token_is_said(token_pulsar: Broker) -> None:
    code, said, errors = Reader("--once", PULSAR_URL=token_pulsar.url, PULSAR_TOKEN="not.a.token").ended()
    assert (code, said) == (78, "") and "check PULSAR_TOKEN" in errors and errors.count("\n") == 1
