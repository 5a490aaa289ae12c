"""Which models exist, asked of an admin address that the tests play."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import openai
import pytest

from gateway import models as module
from gateway.models import Models, is_model_name, model_names
from messaging.admin import AdminSilent, PulsarAdmin
from tests.real.admin_server import admin_server
from tests.unit.gateway_fakes import COMPLETION, running

TOPIC = "persistent://public/default/model-"


class FakeAdmin:
    """subscribed: model → its subscriptions; `silent`: no answers; `calls`: what was asked."""

    def __init__(self, subscribed: dict[str, list[str]]) -> None:
        self.subscribed, self.silent = subscribed, False
        self.calls: list[str] = []

    def subscriptions(self, topic: str) -> list[str]:
        model = topic.removeprefix("model-")
        self._called(model)
        return self.subscribed.get(model, [])

    def topics(self) -> list[str]:
        self._called("topics")
        return [TOPIC + model for model in self.subscribed]

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if self.silent:
            raise AdminSilent("HTTP 500")


def asked(models: Models, *names: str) -> list[bool]:
    async def ask() -> list[bool]:
        return list(await asyncio.gather(*(models.known(name) for name in names)))

    return asyncio.run(ask())


@pytest.mark.parametrize("name", ["m", "gpt-4o", "Qwen2.5:7b", "模型", "a" * 200, "m-partition-x"])
def test_names_that_can_be_topics(name: str) -> None:
    assert is_model_name(name)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "a\n", "a\0", "a" * 201, "m-partition-0", "m-model-m-subscription-DLQ", "m-RETRY"])
def test_names_that_cannot(name: str) -> None:
    assert not is_model_name(name)


def test_only_a_subscription_of_its_nodes_makes_a_model_known() -> None:
    admin = FakeAdmin({"a": ["x", "model-a-subscription"], "b": ["model-a-subscription"]})
    assert asked(Models(admin), "a", "b", "none") == [True, False, False]


def test_answers_are_remembered_and_asked_for_once_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    admin = FakeAdmin({"a": ["model-a-subscription"]})
    models = Models(admin)
    assert asked(models, "a", "a", "none", "none") == [True, True, False, False]
    assert asked(models, "a", "none") == [True, False]
    assert sorted(admin.calls) == ["a", "none"]
    clock = time.monotonic() + module.UNKNOWN_FOR_S + 1
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    admin.subscribed["none"] = ["model-none-subscription"]
    assert asked(models, "a", "none") == [True, True]
    assert sorted(admin.calls) == ["a", "none", "none"]


def test_a_silent_admin_address_refuses_nobody() -> None:
    admin = FakeAdmin({})
    admin.silent = True
    models = Models(admin, own="mine")
    assert asked(models, "a", "a") == [True, True]
    assert admin.calls == ["a"]
    assert asyncio.run(models.listed()) == ["mine"]


def test_the_own_model_needs_no_asking() -> None:
    admin = FakeAdmin({})
    assert asked(Models(admin, own="mine"), "mine") == [True]
    assert admin.calls == []


def test_partitions_are_one_model_and_dead_letters_none() -> None:
    names = ["a", "p-partition-0", "p-partition-1", "p", "a-model-a-subscription-DLQ", ""]
    assert model_names([TOPIC + name for name in names] + ["persistent://public/default/res-topic"]) == {"a", "p"}


def test_the_list_holds_what_is_subscribed() -> None:
    models = Models(FakeAdmin({"b": ["model-b-subscription"], "a": ["model-a-subscription"], "idle": []}))
    assert asyncio.run(models.listed()) == ["a", "b"]


def test_without_an_admin_address_the_own_model_is_there_before_any_answer() -> None:
    models = Models(own="mine")
    models.saw("other")
    assert asyncio.run(models.listed()) == ["mine", "other"]
    assert asked(models, "anything") == [True]


@pytest.fixture
def admin_url() -> Iterator[str]:
    """Pulsar's three addresses, and two that are broken."""
    default = "persistent/public/default"
    answers = {
        default: (200, [TOPIC + "a"]),
        f"{default}/partitioned": (200, [TOPIC + "p"]),
        f"{default}/model-a%20b/subscriptions": (200, ["s"]),
        f"{default}/model-broken/subscriptions": (500, []),
        f"{default}/model-odd/subscriptions": (200, {"not": "a list"}),
    }
    with admin_server(answers) as url:
        yield url


def test_the_admin_address_is_asked_with_the_token(admin_url: str) -> None:
    admin = PulsarAdmin(admin_url, "t-1")
    assert admin.topics() == [TOPIC + "a", TOPIC + "p"]
    assert admin.subscriptions("model-a b") == ["s"]
    assert admin.subscriptions("model-none") == []
    with pytest.raises(AdminSilent, match="401"):
        PulsarAdmin(admin_url, "wrong").topics()


@pytest.mark.parametrize("topic", ["model-broken", "model-odd"])
def test_an_answer_that_cannot_be_used_is_silence(admin_url: str, topic: str) -> None:
    with pytest.raises(AdminSilent):
        PulsarAdmin(admin_url, "t-1").subscriptions(topic)


def test_nobody_listening_is_silence() -> None:
    with pytest.raises(AdminSilent):
        PulsarAdmin("http://127.0.0.1:1").topics()


def test_an_unknown_model_is_refused_at_once() -> None:
    with running(Models(FakeAdmin({"m": ["model-m-subscription"]}))) as bench:
        with pytest.raises(openai.NotFoundError) as raised:
            bench.client.chat.completions.create(model="none", messages=[{"role": "user", "content": "?"}])
        assert raised.value.code == "model_not_found"
        assert bench.queue.published.empty()
        waiting = bench.ask()
        bench.answer(bench.queue.next(), COMPLETION)
        assert waiting.result().status == 200
