"""The node's budget at its upstream, with a clock and a log: limits/budget.py decides."""

from __future__ import annotations

import random
import re
import time
from typing import TYPE_CHECKING

import msgspec

from ipc.messages import Outcome, Rates, Task
from limits.budget import UNLIMITED, Budget
from status.facts import BucketFacts, UpstreamFacts
from supervision.trouble import Spell

if TYPE_CHECKING:
    from config import Settings

_MOST_TOKENS = re.compile(rb'"max_(?:completion_)?tokens"\s*:\s*([0-9]{1,7})')
_UNHEARD = {"upstream_refused", "upstream_reset", "upstream_timeout"}
_AWAY = {"upstream_unresolved", "upstream_tls"}  # throttled as well, but it has nothing to do with how much was asked


class Upstream:
    """Shared over all children. Only a remote node begins with one request: what is ours knows its own slots."""

    def __init__(self, settings: Settings, dice: random.Random) -> None:
        limits = {"rpm": settings.rate_limit_rpm, "tpm": settings.rate_limit_tpm}
        self._refusals = Spell(
            "the upstream wants less; receiving pauses, and goes on slower: {message}",
            "the upstream refuses no more; it did {count} times, over {lasted_s} s",
        )
        self._refused = 0
        self._budget = Budget(dice, **limits, ramps=settings.node_type == "remote")

    def room(self) -> int:
        """How many requests may be sent now."""
        return self._budget.room(time.monotonic())

    def may_take(self, data: msgspec.Raw) -> bool:
        """Whether this request may be sent now."""
        return self._budget.may_send(self._tokens(data), time.monotonic())

    def is_paused(self) -> bool:
        return self._budget.paused_s(time.monotonic()) > 0

    def next_change_s(self) -> float:
        """Until there is room again; 0: there is."""
        return self._budget.next_change_s(time.monotonic())

    def dispatched(self, task: Task) -> None:
        self._budget.dispatched(task.number, self._tokens(task.data), time.monotonic())

    def told(self, rates: Rates) -> None:
        self._budget.told(rates.number, rates.requests, rates.tokens, time.monotonic())

    def ended(self, outcome: Outcome) -> None:
        now_s = time.monotonic()
        error = outcome.error or {}
        if outcome.upstream_sent_ms is None or (outcome.end == "retry" and error.get("code") in _UNHEARD):
            self._budget.unsent(outcome.number, now_s)
            return
        if outcome.end != "throttle":
            tokens = outcome.prompt_tokens + outcome.completion_tokens
            self._budget.ended(outcome.number, tokens or None, now_s)
            return
        self._budget.refused(outcome.number, outcome.wait_s, now_s, over_limit=error.get("code") not in _AWAY)
        self._refused += 1
        self._refusals.meet(str(error.get("message")), now_s)

    def facts(self) -> UpstreamFacts:
        now_s = time.monotonic()
        room = self._budget.room(now_s)
        buckets = [BucketFacts(b.what, b.level, b.holds, b.pace) for b in self._budget.buckets(now_s)]
        return UpstreamFacts(
            self._budget.paused_s(now_s), None if room >= UNLIMITED else room, self._refused, self._budget.guessed_pace, buckets
        )

    def look(self) -> None:
        """Called each turn."""
        self._refusals.look(time.monotonic())

    def _tokens(self, data: bytes | msgspec.Raw) -> float:
        """By the body's length, four characters a token, and what may be answered; 0 where nobody asks for it."""
        if not self._budget.counts_tokens:
            return 0.0
        body = bytes(data)
        found = _MOST_TOKENS.search(body)
        return len(body) / 4 + (int(found[1]) if found else 0)
