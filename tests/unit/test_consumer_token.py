"""The token as it is now, whatever a rotation leaves in its file for a moment."""

from __future__ import annotations

from pathlib import Path

import pytest

import config
from messaging.tokens import current_token


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("first\n")
    return path


def settings(file: Path) -> config.Settings:
    return config.load({"PULSAR_URL": "pulsar://127.0.0.1:1", "PULSAR_TOKEN_FILE": str(file)})


def test_a_file_is_read_anew(file: Path) -> None:
    given = settings(file)
    assert current_token(given) == "first"
    file.write_text("second\n")
    assert current_token(given) == "second"


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"\xff\xfe", b"line\nline"])
def test_what_is_no_token_is_not_used(file: Path, content: bytes) -> None:
    given = settings(file)
    file.write_bytes(content)
    assert current_token(given) == "first"


def test_a_file_that_is_gone_is_borne(file: Path) -> None:
    given = settings(file)
    file.unlink()
    assert current_token(given) == "first"


def test_a_token_of_the_environment_stays() -> None:
    assert current_token(config.load({"PULSAR_URL": "pulsar://127.0.0.1:1", "PULSAR_TOKEN": "fixed"})) == "fixed"
    assert current_token(config.load({"PULSAR_URL": "pulsar://127.0.0.1:1"})) == ""
