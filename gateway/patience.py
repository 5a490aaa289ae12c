"""Whether waiting is hopeless: how long a request would wait for a node, by what was seen of those that wait already."""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice

# The tenth in line is looked at rather than the first: a few that are tried again and again say nothing of the others.
_PLACE = 10
_SEEN_FOR_S = 5.0
_SEEN_BEGUN = 10


class Line:
    """The requests for one model at this gateway that no node has begun. Nodes without links tell only of their answers,
    which says too little: from the first of those on nothing is estimated."""

    def __init__(self) -> None:
        self._members: set[str] = set()  # those that a node has begun included
        self._waiting: OrderedDict[str, tuple[float, int]] = OrderedDict()  # by id: since when, and how many had begun then
        self._begun = 0
        self._tells = True

    def enter(self, request_id: str, now_s: float) -> None:
        self._members.add(request_id)
        self._waiting[request_id] = (now_s, self._begun)

    def begin(self, request_id: str) -> None:
        if self._waiting.pop(request_id, None) is not None:
            self._begun += 1

    def leave(self, request_id: str, has_output: bool) -> int:
        """How many are left, with those that a node has begun."""
        self._members.discard(request_id)
        if self._waiting.pop(request_id, None) is not None and has_output:
            self._tells = False
        return len(self._members)

    def wait_s(self, now_s: float) -> float | None:
        """For who comes now: those in line, at the rate at which they have been begun since the tenth came, which has
        waited all the time. None: too little is known."""
        tenth = next(islice(self._waiting.values(), _PLACE - 1, None), None)
        if tenth is None or not self._tells:
            return None
        since_s, begun_then = tenth
        seen_s, begun = now_s - since_s, self._begun - begun_then
        if seen_s < _SEEN_FOR_S or begun < _SEEN_BEGUN:
            return None
        return len(self._waiting) * seen_s / begun
