"""The pages as they are sent: nothing in them that their policy forbids, or that asks another host."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from pages.page import load

PAGES = ["chat.html", "node.html"]


@pytest.mark.parametrize("name", PAGES)
def test_the_policy_names_the_very_script_and_style_and_nothing_else(name: str) -> None:
    page = load(name, token="t")
    text, policy = page.body.decode(), page.headers["Content-Security-Policy"]
    for tag in ("script", "style"):
        blocks = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(blocks[0].encode()).digest()).decode()
        assert len(blocks) == 1 and f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<[^>]*\s(style|on[a-z]+)=", text), "the policy would keep it from working"


@pytest.mark.parametrize("name", PAGES)
def test_no_other_host_is_named(name: str) -> None:
    hosts = set(re.findall(r"https?://([\w.-]+)", load(name).body.decode()))
    assert hosts <= {"www.w3.org"}, "but for SVG's namespace"


@pytest.mark.parametrize("name", PAGES)
def test_all_that_is_typed_into_has_a_label(name: str) -> None:
    text = load(name).body.decode()
    for field in re.findall(r"<(?:input|select|textarea)[^>]*id=\"([\w-]+)\"", text):
        assert f'for="{field}"' in text or re.search(rf'<label>[^<]*<input id="{field}"', text), field


def test_a_value_is_escaped() -> None:
    assert b'content="&quot;&lt;b&gt;"' in load("node.html", token='"<b>').body
