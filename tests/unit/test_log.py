"""The log: one line each, to standard error, without secrets."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import datetime

import pytest
from loguru import logger

from config import load
from errors import error_object
from ipc.messages import Outcome
from reporting.ends import EndLog
from reporting.log import LONGEST_BODY, body_text, goes_to_journal, say_mistakes, set_up_log
from reporting.usage import Ended
from tests.real.processes import REPOSITORY

KEY = 'k"ey\\of-the-node'


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    logger.remove()
    logger.configure(extra={})


def lines(capsys: pytest.CaptureFixture[str], **variables: str) -> list[str]:
    set_up_log(load({"PULSAR_URL": "pulsar://h", "API_KEY": KEY, **variables}), "backend 1")
    logger.debug("quiet")
    logger.info("the key is {} and {}", KEY, {"key": KEY})
    try:
        raise ValueError(f"refused {KEY} and sk-abcdef123456")
    except ValueError:
        logger.exception("it failed with {braces} <red>and tags</red>")
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys)
    assert "INFO    backend 1: the key is [redacted] and" in found[0]
    assert "ERROR   backend 1: it failed with {braces} <red>and tags</red>" in "\n".join(found)
    assert found[-1].startswith("ValueError: refused [redacted] and [redacted]")
    assert "of-the-node" not in "\n".join(found) and "quiet" not in "\n".join(found)


def test_the_journal_gets_priorities_and_no_time(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = os.fstat(sys.stderr.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", f"{stream.st_dev}:{stream.st_ino}")
    found = lines(capfd, DEBUG="true")
    assert found[0] == "<7>backend 1: quiet" and found[1].startswith("<6>backend 1: the key is [redacted]")
    assert found[2] == "<3>backend 1: it failed with {braces} <red>and tags</red>"
    assert all(line.startswith("<3>") for line in found[2:]) and found[-1].startswith("<3>ValueError: refused [redacted]")
    as_json = lines(capfd, LOG_FORMAT="json")
    assert as_json[0].startswith("<6>{") and json.loads(as_json[0][3:])["time"]
    say_mistakes(["PORT should be free"])
    assert capfd.readouterr().err == "<3>configuration: PORT should be free\n"
    monkeypatch.setenv("JOURNAL_STREAM", f"{stream.st_dev}:{stream.st_ino + 1}")
    assert not goes_to_journal(), "standard error was redirected since"


def test_json_is_one_flat_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, LOG_FORMAT="json", DEBUG="true")
    records = [json.loads(line) for line in found]
    assert [record["level"] for record in records] == ["DEBUG", "INFO", "ERROR"]
    assert list(records[1]) == ["time", "level", "process", "message"] and records[1]["process"] == "backend 1"
    assert abs(datetime.fromisoformat(records[1]["time"]).timestamp() - time.time()) < 60 and records[1]["time"].endswith("Z")
    assert "of-the-node" not in "\n".join(found)
    assert records[2]["message"] == "it failed with {braces} <red>and tags</red>"
    assert records[2]["exception"].endswith("ValueError: refused [redacted] and [redacted]")


def test_json_stays_json_whatever_is_taken_out(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_log(load({"PULSAR_URL": "pulsar://h", "API_KEY": KEY, "LOG_FORMAT": "json"}), "node")
    logger.bind(request_id=f"line\nab****{KEY}", attempt=2, error_code=None, stream=True, message="no").info("x\nsk****1 {}", KEY)
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert found["message"] == "x\n[redacted] [redacted]" and found["request_id"].startswith("line\n[redacted]")
    assert (found["attempt"], found["error_code"], found["stream"]) == (2, None, True) and "of-the-node" not in line


END = Ended(
    "r-1", "r-1", True, {}, 2, 1000.0, 1010.0, 1012.0, Outcome(
        1, "failed", None, prompt_tokens=5, completion_tokens=7, tokens_source="estimated", upstream_sent_ms=1013.0, first_token_ms=1100.0,
        last_token_ms=1400.0, answered_ms=1500.0,
    ), error_object("it broke", "server_error", "upstream_cut"), True,
)  # fmt: skip


def test_the_line_at_a_requests_end(capsys: pytest.CaptureFixture[str]) -> None:
    for form in ("text", "json"):
        log = EndLog(load({"PULSAR_URL": "pulsar://h", "LOG_FORMAT": form}))
        log.say(END)
        log.flush()
    text, line = capsys.readouterr().err.splitlines()
    words = "request r-1 failed in 490 ms (queued 10, waited 2, to first token 87), attempt 2, 5 + 7 tokens (estimated)"
    words += ", dead letter: it broke"
    assert text.endswith(f"INFO    node: {words}")
    found = json.loads(line)
    assert found | {
        "message": words, "request_id": "r-1", "outcome": "failed", "attempt": 2, "stream": True, "error_type": "server_error",
        "error_code": "upstream_cut", "dead_lettered": True, "queued_ms": 10, "waited_ms": 2, "to_first_token_ms": 87, "total_ms": 490,
        "prompt_tokens": 5, "completion_tokens": 7, "tokens_source": "estimated",
    } == found  # fmt: skip
    listed = (REPOSITORY / "docs" / "log.md").read_text()
    assert all(f"`{name}`" in listed for name in found)


@pytest.mark.parametrize("body", ['{"a":"%s"}', "%s", '{"a": [{"b": "x %s y"}], "c": {"%s": 1}}'])
def test_a_body_holds_no_key_however_it_is_written(body: str) -> None:
    key = "of-the-node-0123456789"
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in key) if body.startswith("{") else key
    for written in (key, escaped):
        found = body_text((body.replace("%s", written)).encode(), (key,))
        assert "of-the-node" not in found and "[redacted]" in found


def test_a_long_body_is_cut_and_no_key_with_it() -> None:
    key = "of-the-node-0123456789"
    for place in range(LONGEST_BODY - 40, LONGEST_BODY + 10, 3):
        found = body_text(b"x" * place + key.encode() + b"x" * 9_000_000, (key,))
        assert len(found) < LONGEST_BODY + 60 and "of-the" not in found and found.endswith("characters more")
