"""One request as the test upstream understands it, and what an answer is made of."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0}


def seconds(text: str) -> float:
    """`100ms`, `1.5s`, `2m` or plain seconds."""
    match = re.fullmatch(r"([\d.]+)(ms|s|m|)", text)
    if not match:
        raise ValueError(f"not a duration: {text!r}")
    return float(match[1]) * UNITS_S.get(match[2], 1.0)


@dataclass
class Ask:
    """A chat-completion request: its body, and the behaviour it (or the server's override) asks for."""

    body: dict[str, Any]
    behaviour: str
    key: str = ""  # what the Authorization header held, as vendors echo a part of it
    name: str = field(init=False)
    params: dict[str, str] = field(init=False)
    usage_reported: bool = field(default=False, init=False)
    produced: int = field(default=0, init=False)  # tokens of a stream, by now

    def __post_init__(self) -> None:
        self.name, _, query = self.behaviour.partition("?")
        self.params = dict(parse_qsl(query, keep_blank_values=True))

    @property
    def stream(self) -> bool:
        return self.body.get("stream") is True

    @property
    def include_usage(self) -> bool:
        return bool((self.body.get("stream_options") or {}).get("include_usage"))

    @property
    def choices(self) -> int:
        return int(self.body.get("n") or 1)

    @property
    def tokens(self) -> int:
        limit = self.body.get("max_completion_tokens") or self.body.get("max_tokens") or 1_000_000
        return min(int(self.params.get("tokens", 8)), int(limit))

    @property
    def words(self) -> list[str]:
        """The answer in pieces: `t0`, ` t1`, ` t2`, …"""
        return [f"t{i}" if i == 0 else f" t{i}" for i in range(self.tokens)]

    @property
    def text(self) -> str:
        return "".join(self.words)

    @property
    def said(self) -> str:
        """The last message's text."""
        messages = self.body.get("messages") or [{}]
        return str(messages[-1].get("content", "")) if isinstance(messages[-1], dict) else ""

    @property
    def usage(self) -> dict[str, int]:
        """A token for each word of the messages."""
        prompt = sum(len(str(m.get("content", "")).split()) for m in self.body.get("messages") or [] if isinstance(m, dict))
        completion = self.tokens * self.choices
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    async def first_wait(self) -> None:
        await asyncio.sleep(seconds(self.params.get("latency", "0")))

    async def paced(self) -> AsyncIterator[tuple[int, str]]:
        """Each word at its time, `latency` + i · `gap` after now; a late one does not delay the others."""
        loop = asyncio.get_running_loop()
        start, gap = loop.time() + seconds(self.params.get("latency", "0")), seconds(self.params.get("gap", "0"))
        for i, word in enumerate(self.words):
            wait = start + i * gap - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            self.produced += self.choices
            yield i, word


class Reset(Exception):
    """The connection is to end with a TCP RST."""


class Cut(Exception):
    """The connection is to be closed in the middle of the answer."""


class Kill(Exception):
    """The process at the other end of the connection is to be killed, as a fault in native code would."""


@dataclass
class Reply:
    """An HTTP answer. `body`: all of it, or pieces that are sent one by one, chunked unless `length` says how long it is."""

    body: bytes | AsyncIterator[bytes]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    length: int | None = None
