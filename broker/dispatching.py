"""When subscriptions hand out: once a turn of the event loop for all that happened in it, and when a delay has ended."""

from __future__ import annotations

import asyncio
import time

from broker.subscriptions import Subscription


class Dispatcher:
    """`wake` is cheap: many in one turn are one dispatch."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: dict[Subscription, None] = {}
        self._timers: dict[Subscription, asyncio.TimerHandle] = {}

    def wake(self, subscription: Subscription) -> None:
        if not self._due:
            self._loop.call_soon(self._run)
        self._due[subscription] = None

    def _run(self) -> None:
        due, self._due = self._due, {}
        now_ms = time.time_ns() // 1_000_000
        for subscription in due:
            self._set_timer(subscription, subscription.dispatch(now_ms), now_ms)

    def _set_timer(self, subscription: Subscription, again_at_ms: int | None, now_ms: int) -> None:
        if (timer := self._timers.pop(subscription, None)) is not None:
            timer.cancel()
        if again_at_ms is not None:
            pause_s = max(0.001, (again_at_ms - now_ms) / 1000)
            self._timers[subscription] = self._loop.call_later(pause_s, self.wake, subscription)
