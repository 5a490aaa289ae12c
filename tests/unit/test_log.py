"""The log: one line each, to standard error, without secrets."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from loguru import logger

from config import load
from reporting.log import set_up_log

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


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, LOG_FORMAT="json", DEBUG="true")
    records = [json.loads(line)["record"] for line in found]
    assert [record["level"]["name"] for record in records] == ["DEBUG", "INFO", "ERROR"]
    assert records[1]["extra"]["process"] == "backend 1"
    assert "of-the-node" not in "\n".join(found)
    assert json.loads(found[2])["text"].rstrip().endswith("ValueError: refused [redacted] and [redacted]")
