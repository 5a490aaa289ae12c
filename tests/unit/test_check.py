"""What `--check` says of the topic of the usage records."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from config import Settings
from supervision.check import _records
from tests.real.admin_server import admin_server


@pytest.fixture
def admin_url() -> Iterator[str]:
    with admin_server({"persistent/public/default/res-read/subscriptions": (200, ["billing"])}) as url:
        yield url


@pytest.mark.parametrize(
    ("topic", "token", "grade", "words"),
    [
        ("res-read", "t-1", "ok", "read by billing"),
        ("res-other", "t-1", "warning", "nothing subscribes"),
        ("res-read", "wrong", "warning", "401"),  # which is no reason to say that nothing subscribes
    ],
)
def test_who_reads_the_records(admin_url: str, topic: str, token: str, grade: str, words: str) -> None:
    found = _records(Settings(model_name="m", pulsar_admin_url=admin_url, pulsar_token=token, res_topic_name=topic))
    assert [g for g, _ in found] == [grade] and words in found[0][1]


def test_an_admin_address_that_is_not_there() -> None:
    found = _records(Settings(model_name="m", pulsar_admin_url="http://127.0.0.1:1"))
    assert found[0][0] == "warning" and "no usable answer" in found[0][1]
