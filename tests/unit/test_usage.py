"""Usage records: the wire contract's fields, and no credentials."""

from __future__ import annotations

from typing import Any, Literal

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from config import Settings, load
from errors import error_object
from ipc.messages import End, Outcome
from reporting.usage import Ended, client, node_id, record, record_id
from tests.real.records import checked, schema

HEADERS = {
    "Authorization": ["Bearer sk-secret-1"], "Cookie": ["session=secret-2"], "X-Api-Key": ["secret-3"], "Proxy-Authorization": ["secret-4"],
    "User-Agent": ["curl/8", "other"], "x-forwarded-for": "10.0.0.1", "X-Request-Id": ["sk-pasted-secret-5"], "X-Real-Ip": [], "Odd": [1],
}  # fmt: skip
ANSWERED = Outcome(
    9, "answered", prompt_tokens=5, completion_tokens=7, tokens_source="reported", upstream_model="gpt-x", upstream_sent_ms=1300.0,
    first_token_ms=1400.5, last_token_ms=1900.0, answered_ms=2000.25,
)  # fmt: skip


@pytest.fixture
def settings() -> Settings:
    return load(
        {
            "PULSAR_URL": "pulsar://h", "MODEL_NAME": "m", "NODE_TYPE": "remote", "API_URL": "https://h", "API_KEY": "sk-the-nodes-own-key",
            "AIMODEL_NAME": "a", "AIMODEL_NAMESPACE": "n",
        }
    )  # fmt: skip


def written(settings: Settings, outcome: Outcome, metadata: dict[str, Any] | None = None) -> dict[str, Any]:
    metadata = {"headers": HEADERS} if metadata is None else metadata
    ended = Ended("id-1", "id-1", True, metadata, 2, 1000.0, 1100.0, 1200.0, outcome, outcome.error, outcome.end == "undeliverable")
    return checked(msgspec.json.decode(record(ended, settings, "node-1")))


def test_the_contracts_fields(settings: Settings) -> None:
    found = written(settings, ANSWERED)
    assert found["request_id"] == "id-1"
    assert found["usage"] == {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    assert (found["model"], found["ai_model_name"], found["ai_model_namespace"]) == ("m", "a", "n")
    assert (found["schema_version"], found["outcome"], found["attempt"], found["stream"]) == (1, "answered", 2, True)
    assert (found["error"], found["tokens_source"], found["upstream_model"]) == (None, "reported", "gpt-x")
    assert found["node"].keys() == {"id", "type", "version"} and found["node"]["type"] == "remote"
    assert found["timestamps_ms"] == {
        "published": 1000, "received": 1100, "dispatched": 1200, "upstream_sent": 1300, "first_token": 1400.5, "last_token": 1900,
        "answered": 2000.25,
    }  # fmt: skip
    assert found["durations_ms"] == {
        "queued": 100, "waited": 100, "prepared": 100, "to_first_token": 100.5, "generated": 499.5, "delivered": 100.25, "total": 900.25,
    }  # fmt: skip


def test_no_credentials(settings: Settings) -> None:
    error = error_object("the message may hold anything: secret-6", "server_error", "c")
    text = str(written(settings, msgspec.structs.replace(ANSWERED, end="failed", error=error)))
    assert "secret" not in text and "sk-the-nodes-own-key" not in text
    long = {"headers": {"User-Agent": ["x" * 195 + " sk-the-nodes-own-key"]}}
    assert written(settings, ANSWERED, long)["client"]["user-agent"].endswith("x [red"), "no half of a key at the cut"
    error["code"] = "sk-the-nodes-own-key"
    named = msgspec.structs.replace(ANSWERED, upstream_model="of sk-the-nodes-own-key", end="failed", error=error)
    assert "own-key" not in str(written(settings, named))
    assert written(settings, ANSWERED)["client"] == {"user-agent": "curl/8", "x-forwarded-for": "10.0.0.1", "x-request-id": "[redacted]"}


@pytest.mark.parametrize("metadata", [{}, {"headers": None}, {"headers": []}, {"headers": {"user-agent": [None]}}, None])
def test_a_client_that_says_nothing(metadata: dict[str, Any] | None) -> None:
    assert client(metadata) == {}


def test_a_failure_names_its_error(settings: Settings) -> None:
    found = written(settings, Outcome(1, "failed", error_object("m", "timeout", "request_expired"), answered_ms=1300.0))
    assert (found["outcome"], found["error"]) == ("failed", {"type": "timeout", "code": "request_expired"})
    assert found["usage"]["total_tokens"] == 0 and found["tokens_source"] == "none"
    assert found["durations_ms"]["generated"] is None and found["durations_ms"]["total"] == 200


def test_a_publisher_whose_clock_is_ahead(settings: Settings) -> None:
    ended = Ended("id", "id", False, {}, 1, 5000.0, 1100.0, None, ANSWERED)
    assert msgspec.json.decode(record(ended, settings, "n"))["durations_ms"]["queued"] == 0


def test_the_record_id_is_stable() -> None:
    """Written down: consumers have stored it."""
    assert record_id("id-1") == record_id("id-1") != record_id("id-2")
    assert record_id("id-1") == "fa2108b047497d4891623d7577aec02d"
    assert node_id() == node_id()


# what the schema allows

TIMES = some.floats(0, 4e12)
MAYBE = some.none() | TIMES
WORDS = some.none() | some.text(max_size=300)
ERRORS = some.builds(error_object, some.text(), some.text(max_size=300), WORDS | some.integers(-(2**31), 2**31))
UNANSWERED: some.SearchStrategy[End] = some.sampled_from(["failed", "gone", "unknown", "undeliverable"])
SOURCES: some.SearchStrategy[Literal["reported", "estimated", "none"]] = some.sampled_from(["reported", "estimated", "none"])
TOKENS = some.integers(0, 2**40)


@some.composite
def ended(draw: some.DrawFn) -> Ended:
    """Any end that a request can have."""
    error = draw(some.none() | ERRORS)
    source = draw(SOURCES)
    prompt, completion = (0, 0) if source == "none" else (draw(TOKENS), draw(TOKENS))
    outcome = Outcome(
        1, draw(UNANSWERED) if error else "answered", error, None, None, prompt, completion, source, draw(WORDS), draw(MAYBE), draw(MAYBE),
        draw(MAYBE), draw(TIMES),
    )  # fmt: skip
    request_id = draw(some.text(min_size=1, max_size=200))
    headers = draw(some.dictionaries(some.sampled_from(list(HEADERS)), some.lists(some.text(max_size=300))))
    return Ended(
        request_id, request_id, draw(some.booleans()), {"headers": headers}, draw(some.integers(1, 100)), draw(TIMES), draw(TIMES),
        draw(MAYBE), outcome, error, error is not None and draw(some.booleans()),
    )  # fmt: skip


@given(ended())
def test_whatever_its_end_the_schema_allows_its_record(one: Ended) -> None:
    found = checked(msgspec.json.decode(record(one, load({"PULSAR_URL": "pulsar://h"}), "node-1")))
    spent = one.outcome.prompt_tokens + one.outcome.completion_tokens
    assert found["outcome"] == one.outcome.end and found["usage"]["total_tokens"] == spent


def test_the_schema_describes_each_field_and_allows_no_other(settings: Settings) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    good = written(settings, ANSWERED)
    assert set(good) == set(schema()["properties"]) == set(schema()["required"])
    assert all(field["description"] for field in schema()["properties"].values())
    for nested in ("usage", "timestamps_ms", "durations_ms", "node"):
        properties = schema()["properties"][nested]["properties"]
        assert set(good[nested]) == set(properties) and all(field["description"] for field in properties.values())
    wrong: list[dict[str, Any]] = [
        {"secret": 1}, {"outcome": "retry"}, {"outcome": "failed"}, {"dead_lettered": True}, {"record_id": "id-1"}, {"attempt": 0},
        {"tokens_source": "none"}, {"client": {"authorization": "x"}}, {"usage": good["usage"] | {"prompt_tokens": -1}},
    ]  # fmt: skip
    for changed in wrong:
        with pytest.raises(jsonschema.ValidationError):
            checked(good | changed)
    for name in good:
        with pytest.raises(jsonschema.ValidationError):
            checked({other: value for other, value in good.items() if other != name})
