"""The local node's limit at work: a sample each second, the pure controller's decision, and its reason in the log."""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loguru import logger

from limits.controller import LimitState, next_limit
from limits.sampling import Sampler
from supervision.children import Child

if TYPE_CHECKING:
    from config import Settings

SAMPLE_EACH_S = 1.0
CHANGES_KEPT = 200


@dataclass(frozen=True)
class Change:
    """`at_s`: since the epoch."""

    at_s: float
    limit: int
    why: str


class LocalLimit:
    """`value`: how many requests may be in flight. Only a local node's moves: what a remote one may take is the API's
    to say, and the demo costs nothing. `changes`: the latest, for who wants to see why it moved."""

    def __init__(self, settings: Settings) -> None:
        self._moves = settings.node_type == "local"
        self._state = LimitState.starting(settings.max_process_num)
        self._sampler = Sampler(lambda words: logger.warning("{}", words))
        self._sampled_s = 0.0
        self.changes: deque[Change] = deque(maxlen=CHANGES_KEPT)

    @property
    def value(self) -> int:
        return self._state.limit

    def adjust(self, children: list[Child], in_flight: int) -> None:
        """Called each turn of the loop; looks at the machine once in SAMPLE_EACH_S, while a model is there."""
        capacity = sum(child.capacity for child in children)
        if not self._moves or not capacity or time.monotonic() - self._sampled_s < SAMPLE_EACH_S:
            return
        self._sampled_s = time.monotonic()
        model_pids = [pid for child in children if child.ready for pid in child.ready.pids]
        own_pids = [os.getpid(), *(pid for child in children for pid in child.pids)]
        if capacity != self._state.bound:
            self._state = self._state.with_bound(capacity)
            self._say(f"limit {self._state.limit}: the model servers' slots")
        decision = next_limit(self._sampler.sample(own_pids, model_pids, in_flight), self._state)
        self._state = decision.state
        if decision.why:
            self._say(decision.why)

    def _say(self, why: str) -> None:
        self.changes.append(Change(time.time(), self._state.limit, why))
        logger.info("{}", why)
