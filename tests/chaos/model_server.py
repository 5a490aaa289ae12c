"""`python -m tests.chaos.model_server PORT SLOTS TALLY`: the test upstream as a local model; its words are b0 b1 … instead of
t0 t1 …, so that an answer tells which node made it."""

from __future__ import annotations

import asyncio
import sys

from tests.real.upstream.ask import Ask
from tests.real.upstream.server import Request, Server


class LocalAsk(Ask):
    @property
    def words(self) -> list[str]:
        return [word.replace("t", "b") for word in super().words]


class ModelServer(Server):
    def _ask(self, request: Request) -> Ask:
        asked = super()._ask(request)
        local = LocalAsk(asked.body, asked.behaviour, asked.key)
        local.name = asked.name
        return local


async def serve(port: int, slots: int, tally: str) -> None:
    listening = await ModelServer(slots=slots, tally=tally).serve("127.0.0.1", port)
    await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
