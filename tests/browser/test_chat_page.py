"""The chat page, at the gateway's /."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.real.processes import end_group, free_port, start_bound, wait_until
from tests.real.upstream import Upstream
from tests.real.watched_node import WatchedNode

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

if TYPE_CHECKING:
    from playwright.sync_api import Page

KEY = "wn-0123456789abcdef0123456789abcdef"


@pytest.fixture
def chat(page: Page, node: WatchedNode) -> Page:
    page.goto(node.chat_page)
    expect(page.get_by_label("Model")).to_have_value("m")
    return page


def say(chat: Page, text: str) -> None:
    chat.get_by_label("Message").fill(text)
    chat.keyboard.press("Enter")


def test_an_answer_streams_and_says_what_it_took(chat: Page, upstream: Upstream) -> None:
    upstream.everybody("mock?tokens=40&gap=50ms")
    say(chat, "one two three")
    answer = chat.locator(".assistant > .text")
    expect(answer).to_have_text(re.compile(r"^t0 t1( t\d+)*$"))
    expect(chat.get_by_role("button", name="Stop")).to_be_visible()
    assert "t39" not in (answer.text_content() or ""), "it is shown while it comes"
    expect(answer).to_have_text(re.compile(r"^t0 .* t39$"))
    meta = chat.locator(".meta")
    expect(meta).to_contain_text(re.compile(r"\d+ (ms|s) to first token"))
    expect(meta).to_contain_text(re.compile(r"\d+\.\d tokens/s"))
    expect(meta).to_contain_text("3 + 40 tokens")
    expect(meta).not_to_contain_text("$")
    chat.get_by_role("button", name="Settings").click()
    chat.get_by_label("tokens out").fill("10")
    expect(meta).to_contain_text("$0.0004")
    expect(chat.locator("#sum")).to_have_text("43 tokens so far, $0.0004")


def test_stopping_reaches_the_upstream(chat: Page, upstream: Upstream) -> None:
    upstream.everybody("mock?tokens=1000&gap=100ms")
    say(chat, "go on for ever")
    expect(chat.locator(".assistant > .text")).to_contain_text("t2")
    chat.keyboard.press("Escape")
    expect(chat.locator(".meta")).to_contain_text("stopped")
    upstream.wait_for(lambda stats: stats["cancelled"] == 1 and stats["in_flight"] == 0)
    expect(chat.get_by_role("button", name="Send")).to_be_visible()


def test_the_conversation_goes_on_and_is_kept(chat: Page, upstream: Upstream) -> None:
    upstream.everybody("mock?tokens=2")
    say(chat, "first")
    expect(chat.locator(".meta")).to_contain_text("1 + 2 tokens")
    chat.reload()
    expect(chat.locator(".assistant > .text")).to_have_text("t0 t1")
    say(chat, "second")
    expect(chat.locator(".meta").nth(1)).to_contain_text("tokens")
    asked = [(message["role"], message["content"]) for message in upstream.requests()[-1]["body"]["messages"]]
    assert asked == [("user", "first"), ("assistant", "t0 t1"), ("user", "second")]
    chat.get_by_role("button", name="New chat").click()
    expect(chat.get_by_role("heading", name="Ask the model something")).to_be_visible()
    chat.reload()
    expect(chat.locator(".message")).to_have_count(0)


def test_an_error_is_shown_and_left_out_of_what_is_asked_next(chat: Page, upstream: Upstream) -> None:
    upstream.everybody("err-400")
    say(chat, "bad")
    expect(chat.get_by_role("alert")).to_contain_text("400")
    upstream.everybody("mock?tokens=1")
    say(chat, "good")
    expect(chat.locator(".assistant > .text").nth(1)).to_have_text("t0")
    assert [message["content"] for message in upstream.requests()[-1]["body"]["messages"]] == ["good"]


def test_a_stream_that_breaks_says_so(chat: Page, upstream: Upstream) -> None:
    upstream.everybody("reset-midstream")
    say(chat, "hi")
    expect(chat.get_by_role("alert")).to_be_visible()
    expect(chat.get_by_role("button", name="Send")).to_be_visible()


def test_what_a_model_says_is_never_html(chat: Page) -> None:
    says = '<img src=x onerror=alert(1)> **bold** *soft* 2*3*4 `a<b`\n```js\nlet x = "<b>";\n```'
    events = f"data: {json.dumps({'choices': [{'delta': {'content': says}}]})}\n\ndata: [DONE]\n\n"
    chat.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=events))
    say(chat, "hi")
    answer = chat.locator(".assistant > .text")
    expect(answer).to_contain_text("<img src=x onerror=alert(1)>")
    expect(answer.locator("strong")).to_have_text("bold")
    expect(answer.locator("em")).to_have_text("soft")
    expect(answer.locator("pre")).to_have_text('let x = "<b>";')
    assert answer.locator("img").count() == 0


@pytest.fixture
def locked(node: WatchedNode, tmp_path: Path) -> Iterator[str]:
    """The address of another gateway of the node's queue, which asks for a key."""
    port, keys, log = free_port(), tmp_path / "keys", tmp_path / "log"
    keys.write_text(f"{KEY}\n")
    keys.chmod(0o600)
    environment = {**node.environment, "PORT": str(port), "GATEWAY_API_KEYS_FILE": str(keys)}
    process = start_bound([sys.executable, "-m", "gateway"], log=log, env=environment)
    wait_until(lambda: "gateway on" in log.read_text(), within_s=30, what="the gateway")
    address = f"http://127.0.0.1:{port}/"
    node.pages.append(address)
    yield address
    end_group(process)
    node.pages.remove(address)


def test_a_key_is_asked_for_where_the_gateway_wants_one(page: Page, locked: str, upstream: Upstream) -> None:
    page.goto(locked)
    expect(page.get_by_text("The gateway asks for an API key.")).to_be_visible()
    key = page.get_by_label("API key")
    expect(key).to_be_focused()
    key.fill("wrong")
    key.press("Tab")
    expect(page.get_by_text("The gateway refuses this API key.")).to_be_visible()
    key.fill(KEY)
    key.press("Tab")
    expect(page.get_by_label("Model")).to_have_value("m")
    upstream.everybody("mock?tokens=2")
    say(page, "hi")
    expect(page.locator(".assistant > .text")).to_have_text("t0 t1")
    assert KEY not in page.evaluate("JSON.stringify(localStorage)"), "it goes with the tab"


@pytest.mark.parametrize("width", [340, 1200])
def test_it_fits(chat: Page, width: int) -> None:
    chat.set_viewport_size({"width": width, "height": 700})
    chat.get_by_role("button", name="Settings").click()
    assert chat.evaluate("document.documentElement.scrollWidth") <= width


def test_nothing_but_itself_may_run_in_it(page: Page, node: WatchedNode) -> None:
    response = page.goto(node.chat_page)
    assert response is not None
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
