"""The node as its status port may see it: plain facts, taken on the loop's thread."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from loguru import logger

from messaging.publisher import Publisher
from status.facts import ChildFacts, InHand, LimitChange, Snapshot
from supervision.children import Child, Crew
from supervision.ledger import State
from supervision.limit import LocalLimit
from supervision.requests import Requests
from supervision.upstream import Upstream

if TYPE_CHECKING:
    from config import Settings

CHANGES_SHOWN = 60


class Portrait:
    def __init__(
        self, settings: Settings, crew: Crew, requests: Requests, limit: LocalLimit, upstream: Upstream, publisher: Publisher
    ) -> None:
        self._settings, self._crew, self._requests = settings, crew, requests
        self._limit, self._upstream, self._publisher = limit, upstream, publisher

    def snapshot(self, why_not_ready: str) -> Snapshot:
        ledger, now_s, capacity = self._requests.ledger, time.monotonic(), self._crew.capacity()
        states = {state.value: count for state, count in ledger.open_states().items()}
        return Snapshot(
            at_s=time.time(), why_not_ready=why_not_ready,
            taken=ledger.taken, ended=ledger.ended, given_back=ledger.given_back, open=sum(states.values()), states=states,
            in_hand=ledger.in_hand(), unconfirmed=self._publisher.unconfirmed(),
            limit=min(self._settings.max_process_num, capacity, self._limit.value), capacity=capacity,
            children=[self._child(child, now_s) for child in self._crew.children()],
            upstream=self._upstream.facts(),
            limit_changes=[LimitChange(c.at_s, c.limit, c.why) for c in list(self._limit.changes)[-CHANGES_SHOWN:]],
        )  # fmt: skip

    def _child(self, child: Child, now_s: float) -> ChildFacts:
        aboard = len(self._requests.ledger.aboard(child.number))
        return ChildFacts(child.number, child.role.name, child.pids, _state(child), now_s - child.born_s, aboard, child.role.capacity)

    def find(self, request_id: str) -> InHand | None:
        entry = self._requests.ledger.of_id(request_id)
        if entry is None or (entry.state is State.SETTLING and not entry.answered):
            return None
        job, child = entry.job, next((c for c in self._crew.children() if c.number == entry.child), None)
        return InHand(
            request_id, entry.state.value, entry.line.value, job.request.stream, job.history.attempt,
            f"{child.role.name}, process {child.pids[0]}" if child else "",
            job.history.published_ms, job.received_ms, job.dispatched_ms, job.history.trail,
        )  # fmt: skip

    def kill(self, child: int) -> bool:
        found = next((c for c in self._crew.children() if c.number == child), None)
        if found is None:
            return False
        logger.warning("{} (process {}) is killed, as somebody asked on the status page", found.role.name, found.process.pid)
        found.process.kill()  # and no more: the node is to find out by itself
        return True


def _state(child: Child) -> str:
    """One of status.metrics.CHILD_STATES."""
    if not child.can_be_told or child.last_words is not None:
        return "ending"
    if child.retires:
        return "retiring"
    if child.ready is None:
        return "starting"
    return "at work" if child.at_work or not child.role.capacity else "spare"


def kind_of_death(killed_because: str | None, exit_code: int) -> str:
    """One of a few, where causes are told in many words."""
    if killed_because is not None:
        return "killed by the node"
    return "signal" if exit_code < 0 else "exit code"
