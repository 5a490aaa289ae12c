"""`python -m messaging.deadletters` on real brokers, with what real nodes left there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from typing import Any

import pytest

from messaging.topics import dead_letter_topic
from tests.real.brokers import Broker
from tests.real.node import OURS, NodeProcess
from tests.real.processes import REPOSITORY, free_port, wait_until
from tests.real.requester import Requester
from tests.real.topics import Topics
from tests.real.upstream import Upstream

SECRET = "Bearer of-a-secret-nobody-may-see"


def command(*arguments: str, **variables: str) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    kept = {name: value for name, value in os.environ.items() if not OURS.search(name)}
    ran = subprocess.run(
        [sys.executable, "-m", "messaging.deadletters", *arguments], env=kept | variables, cwd=REPOSITORY,
        capture_output=True, text=True, timeout=40, check=False,
    )  # fmt: skip
    return ran.returncode, ran.stdout, ran.stderr


class Scene:
    """A model of its own on a broker."""

    def __init__(self, pulsar: Broker, **variables: str) -> None:
        self.pulsar, self.model = pulsar, f"dead-{uuid.uuid4().hex[:8]}"
        self.variables = {"PULSAR_URL": pulsar.url, "MODEL_NAME": self.model, "RES_TOPIC_NAME": f"res-{self.model}", **variables}

    def command(self, *arguments: str) -> tuple[int, str, str]:
        return command(*arguments, PULSAR_URL=self.pulsar.url, MODEL_NAME=self.model)

    def listed(self) -> list[dict[str, Any]]:
        code, said, errors = self.command("list", "--json")
        assert code == 0, errors
        found: list[dict[str, Any]] = json.loads(said)
        return found

    def wait_dead(self, count: int) -> None:
        topic = f"persistent/public/default/{dead_letter_topic(self.model)}/stats"

        def backlog() -> int:
            try:
                return int(self.pulsar.admin("GET", topic)["subscriptions"]["workernode"]["msgBacklog"])
            except (OSError, KeyError):  # no topic, no subscription yet
                return 0

        wait_until(lambda: backlog() == count, within_s=25, what=f"{count} dead letters")

    def request(self, requester: Requester, **body: Any) -> dict[str, Any]:
        data = {"model": self.model, "messages": [{"role": "user", "content": str(uuid.uuid4())}], **body}
        metadata = {"headers": {"Authorization": [SECRET], "User-Agent": ["curl/8"]}}
        return {"request_id": str(uuid.uuid4()), "stream": False, "endpoint": requester.http_url, "data": data, "metadata": metadata}


def test_a_dead_letter_is_listed_shown_retried_and_answered(pulsar: Broker) -> None:
    """By the very node that has answered it with the error."""
    with Upstream() as upstream, Requester() as requester:
        scene = Scene(pulsar, NODE_TYPE="remote", API_URL=upstream.url, MAX_ATTEMPTS="2")
        with Topics(pulsar.url, scene.model, scene.variables["RES_TOPIC_NAME"]) as topics, NodeProcess(scene.variables):
            request = scene.request(requester, mock="err-500?times=2")
            request_id = request["request_id"]
            topics.publish(request)
            wait_until(lambda: requester.posts(request_id), within_s=25, what="the error")
            scene.wait_dead(1)

            (found,) = scene.listed()
            assert (found["request_id"], found["attempts"]) == (request_id, 2)
            code, said, _ = scene.command("list")
            assert code == 0 and request_id in said and "2 attempts" in said and said.count("\n") == 1
            code, said, _ = scene.command("show", request_id)
            assert code == 0 and found["last_error"] in said and "curl/8" in said
            assert SECRET not in said and "[withheld]" in said

            code, said, errors = scene.command("retry", request_id)
            assert code == 0 and f"{request_id} was published again (1 of 1)" in said, errors
            wait_until(lambda: len(requester.posts(request_id)) == 2, within_s=20, what="the answer")
            assert requester.posts(request_id)[1].json["data"]["choices"]
            scene.wait_dead(0)


def test_all_are_retried_and_a_kept_answer_is_shown(pulsar: Broker) -> None:
    scene = Scene(pulsar, NODE_TYPE="demo", REQUEST_TTL_S="4")
    with Topics(pulsar.url, scene.model, scene.variables["RES_TOPIC_NAME"]) as topics, NodeProcess(scene.variables):
        requester = Requester()
        lost = scene.request(requester)
        topics.publish(lost)
        topics.publish(b"no request")
        scene.wait_dead(2)
        by_name = {found["request_id"]: found for found in scene.listed()}
        assert by_name[lost["request_id"]]["has_answer"]
        (unreadable,) = by_name.keys() - {lost["request_id"]}
        assert "no request" in scene.command("show", unreadable)[1]
        _, said, _ = scene.command("show", "--json", lost["request_id"])
        assert "fixed demo answer" in json.dumps(json.loads(said)[0]["answer"])
        with requester:
            code, said, errors = scene.command("retry", "--all")
            assert code == 0 and "2 of 2" in said, errors
            wait_until(lambda: requester.posts(lost["request_id"]), within_s=20, what="the answer")
            scene.wait_dead(1)  # what is no request has not become one


def test_mistakes_are_said_in_a_line(pulsar: Broker) -> None:
    scene = Scene(pulsar)
    assert scene.command("list") == (0, "", "there are no dead letters\n")
    for arguments in (("show", "unknown-id"), ("retry", "unknown-id")):
        assert scene.command(*arguments) == (1, "", "there is no dead letter unknown-id\n")
    code, _, said = command("list")
    assert code == 78 and "PULSAR_URL should be set" in said and said.count("\n") == 1
    code, _, said = command("list", PULSAR_URL=f"pulsar://127.0.0.1:{free_port()}")
    assert code == 1 and "is not to be reached" in said and said.count("\n") == 1
    assert command("retry", PULSAR_URL=pulsar.url)[0] == 2


@pytest.mark.parametrize("token", ["", "not.a.token"])
def test_a_wrong_token_is_said(token_pulsar: Broker, token: str) -> None:
    code, _, said = command("list", PULSAR_URL=token_pulsar.url, PULSAR_TOKEN=token)
    assert code == 78 and "check PULSAR_TOKEN" in said and said.count("\n") == 1
