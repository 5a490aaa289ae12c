"""Tests of what runs in a child's event loop: each in a loop of the same kind, under a deadline."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import uvloop

Given = ParamSpec("Given")
Found = TypeVar("Found")
WITHIN_S = 60.0


def on_loop(test: Callable[Given, Coroutine[Any, Any, None]]) -> Callable[Given, None]:
    """The test fails too where a callback of the loop does, which nobody else would hear of."""

    @functools.wraps(test)
    def run(*arguments: Given.args, **named: Given.kwargs) -> None:
        failed: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: failed.append(context))
            runner.run(asyncio.wait_for(test(*arguments, **named), WITHIN_S))
        assert failed == []

    return run


async def until(check: Callable[[], Found | None], *, within_s: float = 10.0, what: str) -> Found:
    """Let the loop turn until `check` returns something true, and return that; TimeoutError names `what`."""
    give_up_at_s = time.monotonic() + within_s
    while not (found := check()):
        if time.monotonic() > give_up_at_s:
            raise TimeoutError(f"after {within_s:g} s still no {what} (last seen: {found!r})")
        await asyncio.sleep(0.01)
    return found
