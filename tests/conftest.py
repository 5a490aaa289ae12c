"""Fixtures for every folder of tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.real.upstream import Upstream

# They start whole nodes as their users do, on the ports that a first try takes: one after the other.
_ON_WELL_KNOWN_PORTS = ("test_all_in_one.py", "test_start_sh.py", "test_ai_sh.py", "test_notify.py")
_ON_REAL_PULSAR = re.compile(r"/acceptance/.*\[pulsar\b")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="on real Pulsar too what any queue will do for")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Real Pulsar goes first, as it takes longest, and without what has nothing of the queue in it."""
    if not config.getoption("--thorough"):
        left = [item for item in items if item.get_closest_marker("whatever_queue") and _ON_REAL_PULSAR.search(item.nodeid)]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]
    items.sort(key=lambda item: not _ON_REAL_PULSAR.search(item.nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _BySharedParts(config, log)


class _BySharedParts(LoadScopeScheduling):  # type: ignore[misc]
    """Where the tests run in several processes: those that share a real Pulsar, a browser, well-known ports, or a file and
    so its fixtures, run in one of them. (xdist's own groups do nothing with this release of pytest.)"""

    def _split_scope(self, nodeid: str) -> str:
        if _ON_REAL_PULSAR.search(nodeid):
            return "the real Pulsar"
        file = nodeid.partition("::")[0]
        if "/browser/" in file:
            return "a browser"
        return "well-known ports" if file.endswith(_ON_WELL_KNOWN_PORTS) else file


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
