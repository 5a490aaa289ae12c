"""Looking names up: one thread for each name, whoever asks."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from net.dial import THREADS, Names
from tests.real.loop import on_loop

PLACE = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))


@on_loop
async def test_who_asks_for_the_same_name_waits_for_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    goes_on = threading.Event()

    def look_up(host: str, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        if host == "dead.example":
            assert goes_on.wait(30)
        return [PLACE]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    names = Names()
    waiting = [asyncio.create_task(names.look_up("dead.example", 80)) for _ in range(2 * THREADS)]
    await asyncio.sleep(0)
    assert await names.look_up("well.example", 80) == [PLACE], "a dead name server keeps nobody else waiting"
    waiting[0].cancel()  # which is its own matter
    goes_on.set()
    assert await asyncio.gather(*waiting[1:]) == [[PLACE]] * (2 * THREADS - 1)
    assert asked.count("dead.example") == 1
    assert await names.look_up("dead.example", 80) == [PLACE] and asked.count("dead.example") == 2


@on_loop
async def test_a_name_that_is_none_is_told_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    names = Names()
    found = await asyncio.gather(*(names.look_up("none.example", 80) for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in found] == [socket.gaierror] * 3
