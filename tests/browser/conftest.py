"""A real browser: Debian's chromium, driven by Playwright. Without one these tests are skipped, unless CI=true."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.real.upstream import Upstream
from tests.real.watched_node import WatchedNode

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -r requirement-dev.txt")
    if CHROMIUM is None:
        without = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        without("there is no chromium (Debian: apt install chromium)")
    playwright.expect.set_options(timeout=30_000)
    with playwright.sync_playwright() as driver:
        # As root, as CI is, chromium's sandbox cannot be had; what it loads is ours.
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def node(browser: Browser, _shared_upstream: Upstream) -> Iterator[WatchedNode]:
    """After `browser`: without one there is no use for it."""
    with WatchedNode(_shared_upstream.url) as watched:
        yield watched


@pytest.fixture
def page(browser: Browser, node: WatchedNode, upstream: Upstream) -> Iterator[Page]:
    """A tab of its own, which must end without an error on its console, and have asked nobody but the node."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    tab = context.new_page()
    tab.set_default_timeout(30_000)
    complaints: list[str] = []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("console", lambda said: complaints.append(said.text) if "Content Security" in said.text else None)
    tab.on("request", lambda asked: None if asked.url.startswith((*node.pages, "data:")) else complaints.append(asked.url))
    yield tab
    context.close()
    assert not complaints
