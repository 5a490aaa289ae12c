"""What of a dead letter is shown, and what is published again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from messaging.deadletters import Letter, in_full, line_of, parse, text_of, withheld
from messaging.redelivery import RETRIED, identity, renewed

HISTORY = {"workernode-attempt": "3", "workernode-published-ms": "1000", "workernode-last-error": "upstream\nbroke"}


class Place:
    """A message's id."""

    def ledger_id(self) -> int:
        return 7

    def entry_id(self) -> int:
        return 3

    def batch_index(self) -> int:
        return -1


class Message:
    def message_id(self) -> Place:
        return Place()


def letter(payload: bytes = b'{"request_id": "r-1"}', properties: dict[str, str] | None = None) -> Letter:
    return Letter(Message(), payload, HISTORY | (properties or {}), dead_ms=62_000)


@pytest.mark.parametrize(
    ("name", "is_withheld"),
    [("Authorization", True), ("proxy-authorization", True), ("Cookie", True), ("Set-Cookie", True), ("x-api-key", True),
     ("api_key", True), ("access_token", True), ("client_secret", True), ("max_tokens", False), ("User-Agent", False), ("content", False)],
)  # fmt: skip
def test_credentials_are_withheld_by_their_names(name: str, is_withheld: bool) -> None:
    assert withheld({"headers": {name: ["v"]}})["headers"][name] == ("[withheld]" if is_withheld else ["v"])


def test_what_looks_like_a_key_is_withheld_wherever_it_is() -> None:
    assert "sk-abcdefghijklmnop1234567890" not in json.dumps(withheld([{"content": "my key sk-abcdefghijklmnop1234567890"}]))


@pytest.mark.parametrize("payload", [b"", b"\xff", b"[]", b"{}", b'{"request_id": 7}', b"{" * 5000])
def test_a_message_without_an_id_is_named_by_its_place(payload: bytes) -> None:
    found = letter(payload)
    assert found.name == "7:3:0"
    assert text_of(found) and json.dumps(in_full(found))


def test_a_line_is_one_line() -> None:
    assert line_of(letter(), now_ms=181_000) == "r-1  3m old  3 attempts  upstream broke"
    assert len(line_of(letter(properties={"workernode-last-error": "e" * 500}), 181_000)) < 150


def test_all_of_it_has_the_trail_and_the_answer() -> None:
    trail = {"workernode-trail": "attempt 1, a: x\nattempt 2, b: y", "workernode-answer": '{"choices": []}', "team": "blue"}
    full = in_full(letter(properties=trail))
    assert full["trail"] == ["attempt 1, a: x", "attempt 2, b: y"]
    assert full["answer"] == {"choices": []} and full["properties"] == {"team": "blue"}


def test_what_is_published_again_has_no_history_and_is_a_request_of_its_own() -> None:
    properties = renewed(HISTORY | {"workernode-deaths": "2", "workernode-answer": "{}", "team": "blue"}, now_ms=5)
    assert properties == {"team": "blue", RETRIED: "5"}
    assert identity("r-1", properties) not in (identity("r-1", {}), identity("r-1", {RETRIED: "6"}))
    assert identity("", {}) is None


@pytest.mark.parametrize("arguments", [["retry"], ["retry", "--all", "r-1"], ["list", "r-1"], ["show"], []])
def test_what_cannot_be_meant_is_refused(arguments: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as refused:
        parse(arguments)
    assert refused.value.code == 2
