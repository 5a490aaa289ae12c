"""Usage records: the wire contract's fields, and no credentials."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from config import Settings, load
from errors import error_object
from ipc.messages import Outcome
from reporting.usage import Ended, client, node_id, record, record_id

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
    ended = Ended("id-1", "id-1", True, {"headers": HEADERS} if metadata is None else metadata, 2, 1000.0, 1100.0, 1200.0, outcome)
    found = msgspec.json.decode(record(ended, settings, "node-1"))
    assert isinstance(found, dict)
    return found


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
        "queued": 100, "waited": 100, "to_first_token": 100.5, "generated": 499.5, "delivered": 100.25, "total": 900.25,
    }  # fmt: skip


def test_no_credentials(settings: Settings) -> None:
    error = error_object("the message may hold anything: secret-6", "server_error", "c")
    text = str(written(settings, msgspec.structs.replace(ANSWERED, end="failed", error=error)))
    assert "secret" not in text and "sk-the-nodes-own-key" not in text
    assert written(settings, ANSWERED)["client"] == {"user-agent": "curl/8", "x-forwarded-for": "10.0.0.1", "x-request-id": "[redacted]"}


@pytest.mark.parametrize("metadata", [{}, {"headers": None}, {"headers": []}, {"headers": {"user-agent": [None]}}, None])
def test_a_client_that_says_nothing(metadata: dict[str, Any] | None) -> None:
    assert client(metadata) == {}


def test_a_failure_names_its_error(settings: Settings) -> None:
    found = written(settings, Outcome(1, "failed", error_object("m", "timeout", "request_expired")))
    assert (found["outcome"], found["error"]) == ("failed", {"type": "timeout", "code": "request_expired"})
    assert found["usage"]["total_tokens"] == 0 and found["tokens_source"] == "none"
    assert found["durations_ms"]["queued"] == 100 and found["durations_ms"]["total"] is None


def test_a_publisher_whose_clock_is_ahead(settings: Settings) -> None:
    ended = Ended("id", "id", False, {}, 1, 5000.0, 1100.0, None, ANSWERED)
    assert msgspec.json.decode(record(ended, settings, "n"))["durations_ms"]["queued"] == 0


def test_the_record_id_is_stable() -> None:
    """Written down: consumers have stored it."""
    assert record_id("id-1") == record_id("id-1") != record_id("id-2")
    assert record_id("id-1") == "fa2108b047497d4891623d7577aec02d"
    assert node_id() == node_id()
