"""The local node's limit at work: a sample each half second, the pure controller's decision, and its reason in the log."""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loguru import logger

from ipc.messages import Alive
from limits.controller import LimitState, Thresholds, next_limit
from limits.sample import Rate
from limits.sampling import Sampler
from supervision.children import Child

if TYPE_CHECKING:
    from config import Settings

SAMPLE_EACH_S = 0.5
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
        self._most = settings.max_process_num
        self._thresholds = Thresholds(
            settings.local_memory_reserve, settings.local_memory_stall, settings.local_others_cpu, settings.local_gain
        )
        self._sampler: Sampler | None = None
        self._state: LimitState | None = None
        if settings.node_type == "local" and settings.local_adaptive:
            self._sampler = Sampler(lambda words: logger.warning("{}", words), settings.gpu_ids)
            self._state = LimitState.starting(self._most)
            logger.info("{}", self._sampler.introduction())
        self._meter = Meter()
        self._sampled_s = 0.0
        self.changes: deque[Change] = deque(maxlen=CHANGES_KEPT)

    @property
    def value(self) -> int:
        return self._most if self._state is None else self._state.limit

    @property
    def is_looking(self) -> bool:
        """Whether `adjust` has something to do now and then."""
        return self._sampler is not None

    def adjust(self, children: list[Child], in_flight: int) -> None:
        """Called each turn of the loop; looks at the machine once in SAMPLE_EACH_S, while a model is there."""
        if self._state is None or self._sampler is None or time.monotonic() - self._sampled_s < SAMPLE_EACH_S:
            return
        capacity = sum(child.capacity for child in children)
        if not capacity:
            return
        self._sampled_s = time.monotonic()
        self._state = self._with_bound(self._state, self._sampler, min(capacity, self._most))
        model_pids = [pid for child in children if child.ready for pid in child.ready.pids]
        own_pids = [os.getpid(), *(pid for child in children for pid in child.pids)]
        sample = self._sampler.sample(own_pids, model_pids, in_flight, self._meter.look(children))
        decision = next_limit(sample, self._state, self._thresholds)
        self._state = decision.state
        if decision.why:
            self._say(decision.limit, decision.why)

    def _with_bound(self, state: LimitState, sampler: Sampler, bound: int) -> LimitState:
        if bound == state.bound:
            return state
        sampler.model_changed()
        changed = state.with_bound(bound)
        if changed.limit != state.limit:
            self._say(changed.limit, f"limit {state.limit} → {changed.limit}: the model servers have {bound} slots")
        return changed

    def _say(self, limit: int, why: str) -> None:
        self.changes.append(Change(time.time(), limit, why))
        logger.info("{}", why)


class Meter:
    """Output of all children together, by what each tells with its leases."""

    def __init__(self) -> None:
        self._latest: dict[int, tuple[Alive, Alive | None]] = {}  # by the child's number, with the one before

    def look(self, children: list[Child]) -> Rate | None:
        """None before every child with a model has told twice."""
        told = {child.number: child.alive for child in children if child.capacity and child.alive is not None}
        self._latest = {number: self._next(number, alive) for number, alive in told.items()}
        pairs = [(before, alive) for alive, before in self._latest.values() if before is not None]
        if not pairs or len(pairs) < len(self._latest):
            return None
        rate = sum((alive.produced - before.produced) / (alive.at_s - before.at_s) for before, alive in pairs)
        return Rate(rate, min(before.at_s for before, _ in pairs), max(alive.at_s for _, alive in pairs))

    def _next(self, number: int, alive: Alive) -> tuple[Alive, Alive | None]:
        latest, before = self._latest.get(number, (alive, None))
        return (latest, before) if alive.at_s <= latest.at_s else (alive, latest)
