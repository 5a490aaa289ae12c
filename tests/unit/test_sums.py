"""The sums of usage records: each request once, the rest told apart."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from reporting.reader import parse
from reporting.sums import Sums, as_json, table


def message(record_id: str, prompt: int = 2, completion: int = 3, *, source: str = "reported", **changed: Any) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    body = {"record_id": record_id, "model": "m", "outcome": "answered", "usage": usage, "tokens_source": source, "added later": 1}
    return json.dumps(body | changed).encode()


def summed(*messages: bytes) -> Sums:
    sums = Sums()
    for one in messages:
        sums.add(one)
    return sums


def test_by_model_and_outcome() -> None:
    sums = summed(message("a"), message("b", 1000, 500), message("c", outcome="failed"), message("d", 5, 5, source="estimated", model="n"))
    assert table(sums).splitlines() == [
        "model  outcome   requests  prompt tokens  completion tokens  estimated  repeats",
        "m      answered         2          1,002                503        0 %        0",
        "m      failed           1              2                  3        0 %        0",
        "n      answered         1              5                  5    100.0 %        0",
        "all                     4          1,009                511      0.7 %        0",
    ]


def test_a_repeat_counts_once_whatever_it_says() -> None:
    found = as_json(summed(message("a"), message("a"), message("a", 7, 7, outcome="unknown"), message("b", outcome="unknown")))
    answered, unknown = found["sums"]
    assert (answered["outcome"], answered["requests"], answered["completion_tokens"], answered["repeats"]) == ("answered", 1, 3, 2)
    assert (unknown["requests"], unknown["repeats"]) == (1, 0)
    assert found["total"] | {"requests": 2, "prompt_tokens": 4, "completion_tokens": 6, "repeats": 2} == found["total"]


@pytest.mark.parametrize("odd", [b"", b"\xff", b"[]", b"{}", b'{"record_id": "a"}', message("a", model=None), b"[" * 100_000])
def test_what_is_no_record_is_told(odd: bytes) -> None:
    sums = summed(odd, message("a"))
    assert sums.total.requests == 1 and as_json(sums)["other_messages"] == 1
    assert table(sums).splitlines()[-1] == "1 other messages on the topic are no usage records"


def test_nothing_yet_and_names_that_a_terminal_would_obey() -> None:
    assert table(Sums()).splitlines()[-1].split() == ["all", "0", "0", "0", "0", "%", "0"]
    assert "\x1b" not in table(summed(message("a", model="\x1b[2J", outcome="\r")))


@given(some.lists(some.tuples(some.sampled_from("abcdef"), some.integers(0, 99), some.integers(0, 99), some.booleans())))
def test_the_total_is_of_each_first_record(given_records: list[tuple[str, int, int, bool]]) -> None:
    sums = summed(*(message(name, p, c, source="estimated" if odd else "reported", outcome=name) for name, p, c, odd in given_records))
    first = {name: rest for name, *rest in reversed(given_records)}
    total = sums.total
    assert total.requests == len(first) and total.repeats == len(given_records) - len(first)
    assert total.prompt_tokens == sum(p for p, _, _ in first.values())
    assert total.estimated_tokens == sum(p + c for p, c, odd in first.values() if odd)


def test_a_mode_that_could_show_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        parse(["--once", "--from", "latest"])
    assert refused.value.code == 2 and "--from latest" in capsys.readouterr().err
    assert parse([]).start == "earliest" and not parse([]).once
