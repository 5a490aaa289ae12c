"""`python -m tests.browser.screenshots`: the README's pictures anew, in docs/images: a node under load that loses a child, and a
conversation. Takes two minutes."""

from __future__ import annotations

import contextlib
import json
import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from playwright.sync_api import expect, sync_playwright

from tests.browser.conftest import CHROMIUM
from tests.real.processes import REPOSITORY
from tests.real.upstream import Upstream
from tests.real.watched_node import HTTP, WatchedNode

if TYPE_CHECKING:
    from playwright.sync_api import Page

IMAGES = REPOSITORY / "docs" / "images"
LOOKS = {"light": ("light", 1200), "dark": ("dark", 1200), "narrow": ("light", 400)}
LOAD_S, CLIENTS = 75.0, 12
QUESTION = "How deep is the sea?"
SAYS = """A message queue is like the ticket machine in a bakery.

Everybody who comes in takes a number and **waits without shouting**. The bakers call the next number when their hands are free, so \
nobody is forgotten, and two bakers never bake the same bread.

If a baker falls ill, the ticket goes back on the counter and another one takes it:

```python
for ticket in queue:
    bread = bake(ticket.order)
    ticket.customer.hand_over(bread)
    queue.acknowledge(ticket)   # only now is it done
```

The last line is the trick: `acknowledge` comes *after* the bread is handed over."""


class Speaker(BaseHTTPRequestHandler):
    """An upstream that says SAYS, a word at a time."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        words = re.findall(r"\S+\s*", SAYS)
        time.sleep(0.28)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        with contextlib.suppress(OSError):  # a picture is taken in the middle
            self._say(words, body)

    def _say(self, words: list[str], body: dict[str, Any]) -> None:
        for word in words:
            self._event({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
            time.sleep(0.02)
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        asked = 8 + sum(len(message["content"].split()) for message in body["messages"])
        usage = {"prompt_tokens": asked, "completion_tokens": len(words), "total_tokens": asked + len(words)}
        self._event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, chunk: dict[str, object]) -> None:
        self.wfile.write(f"data: {json.dumps({'id': 'c', 'object': 'chat.completion.chunk', 'model': 'm', **chunk})}\n\n".encode())

    def log_message(self, format: str, *args: object) -> None:
        return


def load(node: WatchedNode, seed: int, is_over: Callable[[], bool]) -> None:
    """One client: asks, waits for the answer, thinks. Now and then for what is refused."""
    dice = random.Random(seed)
    while not is_over():
        latency_ms, tokens, gap_ms = int(dice.lognormvariate(5.2, 0.4)), dice.randint(20, 60), dice.randint(8, 25)
        mock = "err-400" if dice.random() < 0.01 else f"mock?latency={latency_ms}ms&tokens={tokens}&gap={gap_ms}ms"
        body = {"model": node.model, "mock": mock, "stream": dice.random() < 0.5, "messages": [{"role": "user", "content": QUESTION}]}
        HTTP.request("POST", f"{node.base_url}/chat/completions", json=body)
        time.sleep(dice.expovariate(1 / 0.4))


def show_node(page: Page, node: WatchedNode, look: str) -> None:
    page.goto(node.status_page)
    page.locator("#kids tr").first.wait_for()
    if look == "light":
        page.locator("#kids tr", has_text="at work").first.get_by_role("button").click()
        page.mouse.move(0, 0)
        page.wait_for_timeout(12_000)
    page.wait_for_timeout(1_500)


def show_chat(page: Page, node: WatchedNode, look: str) -> None:
    page.goto(node.chat_page)
    expect(page.get_by_label("Model")).to_have_value(node.model)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("tokens in").fill("0.15")
    page.get_by_label("tokens out").fill("0.60")
    page.get_by_role("button", name="Settings").click()
    for text in ("Explain a message queue to a child", "And once more, please"):
        page.get_by_label("Message").fill(text)
        page.keyboard.press("Enter")
        page.wait_for_timeout(1_200)
        if text.startswith("And"):
            return
        expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=30_000)


def shoot(node: WatchedNode, name: str, show: Callable[[Page, WatchedNode, str], None], height: int) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for look, (scheme, width) in LOOKS.items():
            size = {"width": width, "height": 800 if width < 600 else height}
            context = browser.new_context(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
            page = context.new_page()
            show(page, node, look)
            page.screenshot(path=IMAGES / f"{name}-{look}.png")
            context.close()
        browser.close()


def node_pictures() -> None:
    over = threading.Event()
    with Upstream(rpm=1800, burst=500) as upstream, a_node(upstream.url) as node, ThreadPoolExecutor(CLIENTS) as threads:
        for seed in range(CLIENTS):
            threads.submit(load, node, seed, over.is_set)
        time.sleep(LOAD_S)
        shoot(node, "node", show_node, 1150)
        over.set()


def chat_pictures() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Speaker)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with a_node(f"http://127.0.0.1:{server.server_port}") as node:
        shoot(node, "chat", show_chat, 900)


def a_node(upstream_url: str) -> WatchedNode:
    return WatchedNode(upstream_url, MODEL_NAME="gpt-4o-mini", MAX_PROCESS_NUM="32")


if __name__ == "__main__":
    IMAGES.mkdir(parents=True, exist_ok=True)
    chat_pictures()
    node_pictures()
