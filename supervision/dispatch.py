"""Which child gets which request."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

from loguru import logger

from ipc.messages import Task
from supervision.children import Child, Crew
from supervision.ledger import Entry, Line
from supervision.requests import Job, Requests
from supervision.upstream import Upstream


class Dispatcher:
    """most: how many requests may be in flight now."""

    def __init__(self, crew: Crew, requests: Requests, upstream: Upstream, most: Callable[[], int]) -> None:
        self._crew, self._requests, self._upstream, self._most = crew, requests, upstream, most
        self._reserved: int | None = None  # a child that is to have nothing else, for a request that runs alone

    def run(self) -> None:
        """Send what can be sent now."""
        self._refusals()
        self._alone()
        self._tasks()

    def died(self, child: Child) -> None:
        if child.number == self._reserved:
            self._reserved = None

    def _refusals(self) -> None:
        """To any child that listens, whatever it has to do: a refusal needs no model."""
        ledger = self._requests.ledger
        if not ledger.count_in(Line.REFUSAL):
            return
        able = [child for child in self._crew.backends() if child.listens]
        while able and (entry := self._requests.next_for_child(Line.REFUSAL)) is not None:
            child = min(able, key=lambda c: ledger.load(c.number) - c.capacity)
            self._crew.send(child, self._requests.board(entry, child.number))

    def _alone(self) -> None:
        """To a spare, or else to a child that has got nothing more until it was empty."""
        while (entry := self._requests.next_for_child(Line.ALONE)) is not None:
            child = self._empty_child()
            if child is None or not self._upstream.may_take(entry.job.request.data):
                return
            logger.info("request {} runs alone: {}", entry.request_id, entry.job.history.last_error)
            self._reserved, child.may_die = None, True
            self._send_task(child, entry)
        self._reserved = None  # the request that it was for may have been given back meanwhile

    def _send_task(self, child: Child, entry: Entry[Job]) -> None:
        is_last = self._requests.ledger.in_hand() >= self._most()
        message = self._requests.board(entry, child.number, is_last=is_last)
        if isinstance(message, Task):
            self._upstream.dispatched(message)
        self._crew.send(child, message)

    def _empty_child(self) -> Child | None:
        ledger = self._requests.ledger
        able = [child for child in self._crew.backends() if child.is_usable]
        empty = [child for child in able if not ledger.aboard(child.number)]
        if not empty and self._reserved is None and able:
            self._reserved = min(able, key=lambda c: len(ledger.aboard(c.number))).number
        return min(empty, key=lambda c: (c.at_work, c.number != self._reserved), default=None)

    def _tasks(self) -> None:
        """To the child with the most room."""
        ledger = self._requests.ledger
        if not ledger.count_in(Line.TASK):
            return
        room = {
            child.number: (child.capacity - ledger.load(child.number), child)
            for child in self._crew.backends() if child.capacity and not self._is_set_apart(child)
        }  # fmt: skip
        while room and (entry := self._requests.next_for_child(Line.TASK)) is not None:
            left, child = max(room.values(), key=itemgetter(0))
            if left <= 0 or not self._upstream.may_take(entry.job.request.data):
                return
            self._send_task(child, entry)
            room[child.number] = left - 1 if child.can_be_told else 0, child  # what is sent may end it

    def _is_set_apart(self, child: Child) -> bool:
        return child.number == self._reserved or self._requests.ledger.is_quarantined(child.number)
