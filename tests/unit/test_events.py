"""What Events say, what they are called, and which reports are one: the pure part."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

import config
from reporting import events
from reporting.backlog import COMBINED, MOST_CAUSES, Backlog
from reporting.eventbody import (
    WINDOW_S,
    Cause,
    Report,
    Subject,
    cause,
    event_name,
    new_event,
    repetition,
    tidy,
    timestamp,
    window,
)
from reporting.events import Events
from tests.real.kubernetes_api import SUBDOMAIN, check

SUBJECT = Subject("llama-3", "models", "llama-3-7c9d-x2x")
NOW_S = 1_795_000_000.0
KEY = "sk-a-key-of-the-node-1234"


def report(message: str = "it broke", count: int = 1) -> Report:
    return Report(cause("Warning", "GeneralError", message), message, NOW_S, NOW_S + 3, count)


def test_an_event_as_the_operator_reads_it() -> None:
    body = new_event(SUBJECT, report(count=4), "a-name")
    assert body["metadata"]["namespace"] == "models"
    assert body["involvedObject"] == {
        "apiVersion": "model.youxam.com/v1alpha1", "kind": "AIModel", "name": "llama-3", "namespace": "models",
    }  # fmt: skip
    assert (body["type"], body["reason"], body["count"]) == ("Warning", "GeneralError", 4)
    assert body["message"] == "it broke (node llama-3-7c9d-x2x)"
    assert (body["firstTimestamp"], body["lastTimestamp"]) == (timestamp(NOW_S), timestamp(NOW_S + 3))
    assert timestamp(NOW_S) == "2026-11-18T11:06:40Z"
    assert body["source"] == {"component": "workernode"}


def test_a_repetition_adds_to_the_count_and_is_bound_to_the_version() -> None:
    again = report(count=3)
    body = repetition(again, 4, "77")
    assert (body["count"], body["lastTimestamp"], body["metadata"]["resourceVersion"]) == (7, timestamp(NOW_S + 3), "77")
    assert body["metadata"]["annotations"] == {"workernode/last-report": again.mark}
    assert "firstTimestamp" not in body


def test_names_are_the_same_over_restarts_and_differ_where_they_should() -> None:
    of = cause("Warning", "GeneralError", "it broke")
    name = event_name(SUBJECT, of, 5)
    assert name == event_name(Subject("llama-3", "models", "llama-3-7c9d-x2x"), cause("Warning", "GeneralError", "it broke"), 5)
    others = [
        event_name(Subject("llama-4", "models", "llama-3-7c9d-x2x"), of, 5),
        event_name(Subject("llama-3", "other", "llama-3-7c9d-x2x"), of, 5),
        event_name(Subject("llama-3", "models", "another"), of, 5),
        event_name(SUBJECT, Cause("Normal", of.reason, of.gist), 5),
        event_name(SUBJECT, Cause(of.type, "ConfigurationError", of.gist), 5),
        event_name(SUBJECT, Cause(of.type, of.reason, "it burnt"), 5),
        event_name(SUBJECT, of, 6),
    ]
    assert len({name, *others}) == 8


def test_a_window_is_ten_minutes() -> None:
    start_s = window(NOW_S) * WINDOW_S
    assert window(start_s) == window(start_s + 599.9) == window(start_s + 600) - 1


def test_figures_and_ids_make_no_new_cause_but_names_do() -> None:
    def gist(message: str) -> str:
        return cause("Warning", "GeneralError", message).gist

    assert gist("no answer for 61.5 s (3 of 5)") == gist("no answer for 122.0 s (4 of 7)")
    assert gist("refused: req_0a1b2c3d4e") == gist("refused: req_ffffffffff")
    assert gist("id 7f1c0c9e-6c5f-4ad5-9d2f-000000000001") == gist("id 7f1c0c9e-6c5f-4ad5-9d2f-0000000000ff")
    assert gist("waits 30s, at most") == gist("waits 60s, at most")
    assert gist("the model gpt-4 does not exist") != gist("the model gpt-5 does not exist")
    assert gist("API_URL=https://a.example/v1") != gist("API_URL=https://b.example/v1")


def test_a_message_holds_no_key_and_is_one_line() -> None:
    assert tidy(f"a\n\tb\x00c  {KEY} and own-secret-x", ("own-secret-x",)) == "a b c [redacted] and [redacted]"


def test_a_long_message_is_cut_but_for_who_says_so() -> None:
    message = new_event(SUBJECT, report("ü" * 2000), "a-name")["message"]
    assert 1000 < len(message.encode()) <= 1024
    assert message.endswith("…  (node llama-3-7c9d-x2x)".replace("  ", " "))


names = st.text(min_size=1, max_size=300)
messages = st.text(st.characters(), max_size=3000) | st.text(st.characters(categories=("Cs", "Cc", "Zl", "Lo")), max_size=2000)


@given(message=messages, aimodel=names, node=st.text(min_size=1, max_size=253), key=st.text("abcXYZ019-_\"\\'", min_size=8, max_size=60))
def test_whatever_the_message_the_api_server_takes_the_event(message: str, aimodel: str, node: str, key: str) -> None:
    words = tidy(message + key + message, (key,))
    assert key not in words.replace("[redacted]", " ")
    of = cause("Normal", "APIQuotaExceededError", words)
    subject = Subject(aimodel.encode("utf-8", "replace").decode(), "models", node.encode("utf-8", "replace").decode())
    name = event_name(subject, of, 0)
    assert SUBDOMAIN.fullmatch(name) and len(name) <= 253
    assert check("models", new_event(subject, Report(of, words, NOW_S, NOW_S), name)) is None


# which reports are one


def test_the_same_cause_waits_once_with_its_count_and_the_oldest_goes_first() -> None:
    backlog = Backlog()
    backlog.add("Warning", "GeneralError", "no answer for 1 s", NOW_S)
    backlog.add("Normal", "GeneralError", "it works again", NOW_S + 1)
    backlog.add("Warning", "GeneralError", "no answer for 9 s", NOW_S + 2)
    first, second = backlog.take(), backlog.take()
    assert first and second and backlog.take() is None
    assert (first.cause.type, first.count, first.first_s, first.last_s) == ("Warning", 2, NOW_S, NOW_S + 2)
    assert first.message == "no answer for 1 s"
    assert (second.cause.type, second.count) == ("Normal", 1)


def test_what_was_taken_counts_no_further() -> None:
    backlog = Backlog()
    backlog.add("Warning", "GeneralError", "it broke", NOW_S)
    taken = backlog.take()
    backlog.add("Warning", "GeneralError", "it broke", NOW_S + 1)
    again = backlog.take()
    assert taken and again and (taken.count, again.count) == (1, 1) and taken.mark != again.mark


@given(st.lists(st.tuples(st.sampled_from(["Warning", "Normal"]), st.sampled_from("abcdefghijklmnopqrstuvwxyz"), st.integers(0, 900))))
def test_every_report_is_counted_and_the_backlog_is_bounded(reports: list[tuple[str, str, int]]) -> None:
    backlog, now_s, dice = Backlog(), NOW_S, random.Random(len(reports))
    counted = 0
    for type_, message, later_s in reports:
        now_s += later_s
        backlog.add("Warning" if type_ == "Warning" else "Normal", "GeneralError", message, now_s)
        assert len(backlog) <= 2 * (MOST_CAUSES + 1)
        if dice.random() < 0.2 and (taken := backlog.take()):
            counted += taken.count
    while taken := backlog.take():
        counted += taken.count
    assert counted == len(reports)


def test_messages_that_never_read_the_same_are_combined() -> None:
    backlog = Backlog()
    for number in range(50):
        backlog.add("Warning", "GeneralError", "lost " + "x" * number + "!", NOW_S + number)
    found = [one for one in iter(backlog.take, None)]
    assert len(found) == MOST_CAUSES + 1
    assert found[-1].message.startswith(COMBINED) and found[-1].count == 50 - MOST_CAUSES


def test_after_ten_minutes_other_causes_have_their_turn() -> None:
    backlog = Backlog()
    for word in "abcdefghij":
        backlog.add("Warning", "GeneralError", word, NOW_S)
        backlog.take()
    backlog.add("Warning", "GeneralError", "k", NOW_S + WINDOW_S + 1)
    taken = backlog.take()
    assert taken and taken.message == "k"


# without a place to report to


def test_without_a_name_no_thread_is_started() -> None:
    reports = Events(config.load({}))
    reports.warn("GeneralError", "it broke")
    reports.note("GeneralError", "it works again")
    assert reports._thread is None
    reports.close(1.0)


def test_delays_grow_and_differ() -> None:
    delays = [events._delay_s(tries, 1.0, 60.0) for tries in range(40)]
    assert all(0.5 <= delay_s <= 60.0 for delay_s in delays)
    assert min(delays[7:]) >= 30.0
    assert len(set(delays[7:])) > 10
