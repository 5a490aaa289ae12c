"""Real brokers for the acceptance tests. Each starts at its first use and ends with the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.real.pulsar_server import PulsarServer, PulsarUnavailable


def _started(*, token_authentication: bool = False) -> PulsarServer:
    try:
        server = PulsarServer(token_authentication=token_authentication)
    except PulsarUnavailable as why:
        if os.environ.get("CI") == "true":
            pytest.fail(str(why))
        pytest.skip(str(why))
    return server.start()


@pytest.fixture(scope="session")
def pulsar() -> Iterator[PulsarServer]:
    """The Pulsar that the tests share: use topics of your own, and leave it running."""
    server = _started()
    yield server
    server.close()


@pytest.fixture(scope="session")
def token_pulsar() -> Iterator[PulsarServer]:
    """A shared Pulsar that asks for tokens; `token_pulsar.token("node")` makes one."""
    server = _started(token_authentication=True)
    yield server
    server.close()


@pytest.fixture(scope="module")
def _modules_own_pulsar() -> Iterator[PulsarServer]:
    server = _started()
    yield server
    server.close()


@pytest.fixture
def own_pulsar(_modules_own_pulsar: PulsarServer) -> PulsarServer:
    """A Pulsar that a test may stop, kill and start again; the next test of the module finds it running."""
    if not _modules_own_pulsar.alive:
        _modules_own_pulsar.start()
    return _modules_own_pulsar
