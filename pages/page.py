"""A page as it is sent: one file of HTML, CSS and JavaScript, and headers that let it load nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Page:
    body: bytes
    headers: dict[str, str]


def load(name: str, **values: str) -> Page:
    """`values`: what stands in the file as `{{name}}`, outside of its script and style."""
    text = (_FOLDER / name).read_text(encoding="utf-8")
    policy = _policy(text)
    for key, value in values.items():
        text = text.replace("{{" + key + "}}", html.escape(value))
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "X-Frame-Options": "DENY",
        "Cache-Control": "no-store",
    }
    return Page(text.encode(), headers)


def _policy(text: str) -> str:
    """Only the very script and style of the file run, and they may ask nobody but who sent it."""
    script, style = (" ".join(_hashes(text, tag)) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(text: str, tag: str) -> list[str]:
    blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'" for block in blocks]
