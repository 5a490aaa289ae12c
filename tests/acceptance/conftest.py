"""Real brokers for the acceptance tests, each in two kinds. Each starts at its first use and ends with the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.real.brokers import BROKERS, Broker
from tests.real.pulsar_server import PulsarUnavailable


def _started(kind: str, *, token_authentication: bool = False) -> Broker:
    try:
        server = BROKERS[kind](token_authentication=token_authentication)
    except PulsarUnavailable as why:
        if os.environ.get("CI") == "true":
            pytest.fail(str(why))
        pytest.skip(str(why))
    return server.start()


@pytest.fixture(scope="session", params=list(BROKERS))
def pulsar(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """The broker that the tests share: use topics of your own, and leave it running."""
    server = _started(request.param)
    yield server
    server.close()


@pytest.fixture(scope="session", params=list(BROKERS))
def token_pulsar(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A shared broker that asks for tokens; `token_pulsar.token("admin")` makes one."""
    server = _started(request.param, token_authentication=True)
    yield server
    server.close()


@pytest.fixture(scope="module", params=list(BROKERS))
def _modules_own_pulsar(request: pytest.FixtureRequest) -> Iterator[Broker]:
    server = _started(request.param)
    yield server
    server.close()


@pytest.fixture
def own_pulsar(_modules_own_pulsar: Broker) -> Broker:
    """A broker that a test may stop, kill and start again; the next test of the module finds it running."""
    if not _modules_own_pulsar.alive:
        _modules_own_pulsar.start()
    return _modules_own_pulsar
