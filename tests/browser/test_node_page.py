"""The node's page, at STATUS_PORT's /."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.real.upstream import Upstream
from tests.real.watched_node import WatchedNode

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture
def shown(page: Page, node: WatchedNode) -> Page:
    page.goto(node.status_page)
    expect(page.locator("#ready")).to_have_text("takes requests", timeout=60_000)
    return page


def test_a_killed_child_loses_nothing(shown: Page, node: WatchedNode, upstream: Upstream) -> None:
    with ThreadPoolExecutor(6) as threads:
        answers = [threads.submit(node.ask, "mock?latency=3s") for _ in range(6)]
        upstream.wait_for(lambda stats: stats["in_flight"] == 6)
        busy = shown.locator("#kids tr", has=shown.locator("td.n > span:first-child", has_text=re.compile("^[1-9]"))).first
        name = busy.locator("td.name").text_content()
        busy.get_by_role("button", name="kill -9").click()
        dead = shown.locator(f"#kids tr[data-name='{name}']")
        expect(dead.locator("td.last")).to_contain_text("SIGKILL")
        expect(dead.locator("td").nth(6)).to_have_text("1")
        assert [answer.result()[0] for answer in answers] == [200] * 6
    expect(shown.locator("#sum")).to_contain_text("✓ none lost")
    expect(shown.locator("#sum")).to_contain_text("+ 0 in hand")
    expect(shown.locator("#troubles")).to_contain_text("as somebody asked on the status page")


def test_one_request_is_told(shown: Page, node: WatchedNode) -> None:
    _, request_id = node.ask()
    shown.get_by_label("Its id").fill(request_id)
    shown.keyboard.press("Enter")
    answer = shown.locator("#answer")
    expect(answer).to_contain_text("Answered: the requester has its result")
    expect(answer.locator("li")).to_have_count(7)
    shown.get_by_label("Its id").fill("<b>nobody's</b>")
    shown.keyboard.press("Enter")
    expect(answer).to_contain_text("neither holds this request nor remembers it")
    expect(answer).to_contain_text("where <b>nobody's</b>")


def test_plots_are_read_by_keyboard(shown: Page, node: WatchedNode) -> None:
    node.ask()
    plot = shown.get_by_role("img", name=re.compile("^Requests a second, now"))
    plot.focus()
    for _ in range(3):
        shown.keyboard.press("ArrowLeft")
    expect(shown.get_by_role("img", name=re.compile("^Requests a second, 3 seconds ago: answered"))).to_be_focused()
    shown.keyboard.press("Escape")
    expect(shown.get_by_role("img", name=re.compile("^Requests a second, now"))).to_be_focused()


def test_figures_come_live(shown: Page, node: WatchedNode) -> None:
    before = shown.locator("#sum b").first.text_content()
    assert before is not None
    node.ask()
    expect(shown.locator("#sum b").first).not_to_have_text(before)
    expect(shown.locator("#kids tr[data-name='gateway'] .badge")).to_have_text("serves")


@pytest.mark.parametrize("width", [340, 760, 1200])
def test_it_fits(shown: Page, width: int) -> None:
    shown.set_viewport_size({"width": width, "height": 700})
    assert shown.evaluate("document.documentElement.scrollWidth") <= width


def test_it_says_that_the_node_is_gone(shown: Page) -> None:
    expect(shown.get_by_text("The node does not answer")).to_be_hidden()
    shown.context.set_offline(True)
    shown.evaluate("feed.close(); feed.onerror()")  # a connection that stands outlives set_offline
    expect(shown.get_by_text("The node does not answer")).to_be_visible()
