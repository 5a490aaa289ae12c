"""What is remembered of requests and what is told of it: counts, metrics, timelines."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

import config
from errors import error_object
from messaging.redelivery import History
from status import metrics, stories
from status.book import Book
from status.facts import InHand
from status.health import Health
from status.series import Second
from status.stories import Note, Stories
from status.tally import Histogram
from status.timeline import of_in_hand, of_notes, of_record
from tests.unit.status_fakes import AT_MS, SETTINGS, StillNode, ended, record_of


def samples(book: Book) -> dict[str, float]:
    """`name{label=value,…}` → value, of /metrics."""
    _, text = metrics.exposition(book, Health(), "")
    return {
        sample.name + str(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode()) for sample in family.samples
    }  # fmt: skip


def of(found: dict[str, float], name: str, **labels: str) -> float:
    return next(v for key, v in found.items() if key.startswith(f"{name}[") and all(str((k, w)) in key for k, w in labels.items()))


def test_a_value_falls_into_the_first_bucket_that_holds_it() -> None:
    histogram = Histogram((1, 4, 16))
    histogram.add([17, 0, 16, 1])
    histogram.add([1.5])
    histogram.add([])
    assert (histogram.counts, histogram.sum) == ([2, 1, 1, 1], 35.5)


def test_a_request_in_the_metrics() -> None:
    book = Book(SETTINGS)
    request = ended()
    book.ended(request, record_of(request))
    book.add_point(StillNode().snapshot(""))
    found = samples(book)
    assert of(found, "workernode_requests_ended_total", outcome="answered") == 1
    assert of(found, "gen_ai_client_token_usage_sum", gen_ai_token_type="output", gen_ai_request_model="m") == 21
    assert of(found, "gen_ai_server_time_to_first_token_seconds_sum") == pytest.approx(0.105)
    assert of(found, "gen_ai_server_request_duration_seconds_bucket", le="0.32") == 1
    assert of(found, "gen_ai_server_request_duration_seconds_bucket", le="0.16") == 0
    assert of(found, "gen_ai_server_time_per_output_token_seconds_sum") == pytest.approx(0.2 / 20)
    assert of(found, "gen_ai_client_operation_duration_seconds_count", error_type="") == 1
    assert of(found, "workernode_requests_open", state="begun") == 1
    assert of(found, "workernode_upstream_remaining", of="requests") == 40
    assert of(found, "workernode_ready") == 0  # nobody has told that it is


def test_errors_of_any_name_make_a_bounded_number_of_series() -> None:
    book = Book(SETTINGS)
    for n in range(300):
        for code in (f"odd_{n}", n, ["odd"], None):
            request = ended(f"r{n}", "failed", error={**error_object("no", f"type_{n}"), "code": code})
            book.ended(request, record_of(request))
    known = ended("r", "failed", error=error_object("no", "server_error", "upstream_reset"))
    book.ended(known, record_of(known))
    book.enter()
    found = samples(book)
    assert of(found, "workernode_requests_ended_total", error="other") == 1200
    assert of(found, "workernode_requests_ended_total", error="upstream_reset") == 1
    assert len(found) < 200
    assert not [key for key in found if "odd" in key]


def test_a_second_has_the_quantiles_of_what_was_answered_in_it() -> None:
    second = Second()
    answered = [ended(answered_ms=AT_MS + 2 + n, first_token_ms=None) for n in range(100)]
    second.add([*answered, ended("f", "failed", error=error_object("no", "server_error"))])
    point = second.point(1.0, 3, 8, None)
    assert (point.answered, point.failed, point.tokens) == (100, 1, 101 * 33)
    assert (point.total_p50, point.total_p95, point.first_p50) == (0.05, 0.095, None)


def test_stories_have_a_bounded_number_and_keep_the_troubled_ones_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stories, "KEPT", 10)
    monkeypatch.setattr(stories, "KEPT_TROUBLED", 5)
    kept = Stories()
    for n in range(100):
        kept.ended(f"r{n}", b"{}", "it failed" if n % 10 == 0 else "", ())
    assert len(kept) == 15
    assert [n for n in range(90) if kept.get(f"r{n}")] == [40, 50, 60, 70, 80]


def test_what_was_given_back_is_told_with_its_end() -> None:
    book = Book(SETTINGS)
    book.given_back("r", AT_MS + 1, 1, History(2, int(AT_MS), "the upstream broke the connection"), 0.5)
    story = book.stories.get("r")
    assert story is not None
    assert "another node has it" in of_notes("r", story).words
    request = ended(trail=("attempt 1, host-1: the upstream broke the connection",))
    book.ended(request, record_of(request))
    book.enter()
    told = of_record(story.record, "memory", story)
    assert told.is_over
    assert told.earlier == ["attempt 1, host-1: the upstream broke the connection"]
    words = [step.words for step in told.steps]
    assert words[0] == "published to the queue"
    assert "put back into the queue after attempt 1: the upstream broke the connection; due again in 0.5 s" in words
    by_words = {step.words: step for step in told.steps}
    assert by_words["first output of the model"].after_ms == 100
    assert told.facts["tokens"] == "12 + 21"


def test_why_a_request_failed_is_told_without_keys() -> None:
    remote = {"NODE_TYPE": "remote", "MODEL_NAME": "m", "API_URL": "http://h", "PULSAR_URL": "pulsar://h"}
    book = Book(config.load({**remote, "API_KEY": "geheim-1234"}))
    error = error_object("Incorrect API key provided: geheim-1234", "invalid_request_error", "invalid_api_key")
    request = ended("r", "failed", error=error)
    book.ended(request, record_of(request))
    book.enter()
    story = book.stories.get("r")
    assert story is not None
    words = of_record(story.record, "memory", story).words
    assert words.startswith("failed: the requester has an error: Incorrect API key")
    assert "geheim" not in words


def test_a_request_in_hand_is_told_up_to_now() -> None:
    held = InHand("r", "dispatched", "task", True, 2, "backend 0, process 7", AT_MS, AT_MS + 2, AT_MS + 5, ("attempt 1, host-1: it died",))
    told = of_in_hand(held, None, AT_MS + 1005)
    assert not told.is_over
    assert told.words == "it is being computed"
    assert [round(step.after_ms) for step in told.steps] == [0, 2, 3, 1000]
    assert told.steps[2].words == "handed to backend 0, process 7"
    waiting = of_in_hand(InHand("r", "waiting", "alone", True, 1, "", AT_MS, AT_MS, None, ()), None, AT_MS)
    assert re.search("waits in the node for a child of its own", waiting.words)


def test_notes_of_a_request_are_bounded() -> None:
    kept = Stories()
    for n in range(100):
        kept.note("r", Note(float(n), "given back"))
    story = kept.get("r")
    assert story is not None and [note.at_ms for note in story.notes] == list(range(80, 100))
