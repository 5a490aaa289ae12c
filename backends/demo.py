"""The demo backend: the same fixed answer to every request, so that everything around a model can be tried."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import msgspec

from backends.base import Account, Call, Sink
from backends.body import Body

if TYPE_CHECKING:
    from config import Settings

ANSWER = "This is WorkerNode's fixed demo answer: your request came through the queue, and this came back."


class DemoBackend:
    def __init__(self, settings: Settings) -> None:
        self._model = settings.model_name
        self._numbers = itertools.count(1)
        self._prefix = f"chatcmpl-demo-{time.time_ns():x}"

    async def start(self) -> int:
        return 0

    async def reach(self) -> None:
        return

    async def watch(self) -> None:
        return

    def pids(self) -> list[int]:
        return []

    def stop(self) -> None:
        return

    async def answer(self, call: Call, sink: Sink, account: Account) -> None:
        body = Body(call.data)
        words = ANSWER.split(" ")
        usage = {"prompt_tokens": -(-body.prompt_characters() // 4), "completion_tokens": len(words)}
        usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
        account.sent(body.prompt_characters())
        account.upstream_model = self._model
        if call.stream:
            await self._stream(words, usage if body.wants_usage else None, sink, account)
        else:
            account.output(len(ANSWER))
            message = {"role": "assistant", "content": ANSWER}
            sink.whole(self._encode("chat.completion", [{"index": 0, "message": message, "finish_reason": "stop"}], usage))
        account.reported((usage["prompt_tokens"], usage["completion_tokens"]))

    async def _stream(self, words: list[str], usage: dict[str, int] | None, sink: Sink, account: Account) -> None:
        name = next(self._numbers)
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, {"content": words[0]}]
        deltas += [{"content": f" {word}"} for word in words[1:]]
        for delta in deltas:
            account.output(1)
            await sink.chunk(self._encode("chat.completion.chunk", [{"index": 0, "delta": delta, "finish_reason": None}], None, name))
        await sink.chunk(self._encode("chat.completion.chunk", [{"index": 0, "delta": {}, "finish_reason": "stop"}], None, name))
        if usage:
            await sink.chunk(self._encode("chat.completion.chunk", [], usage, name))

    def _encode(self, kind: str, choices: list[dict[str, Any]], usage: dict[str, int] | None, number: int | None = None) -> bytes:
        identifier = f"{self._prefix}-{number or next(self._numbers)}"
        body = {"id": identifier, "object": kind, "created": int(time.time()), "model": self._model, "choices": choices}
        return msgspec.json.encode({**body, "usage": usage} if usage else body)
