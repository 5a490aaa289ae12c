"""Fixtures for every folder of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.real.upstream import Upstream


@pytest.fixture(scope="session")
def _shared_upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(_shared_upstream: Upstream) -> Upstream:
    """A real HTTP upstream in its own process (tests/real/upstream says how it is told what to do), its counts at zero."""
    _shared_upstream.everybody("")
    _shared_upstream.reset()
    return _shared_upstream
