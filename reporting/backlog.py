"""What is to be reported and has not been yet: the same cause once, with a count, and never more than a bounded number."""

from __future__ import annotations

from reporting.eventbody import WINDOW_S, Cause, EventType, Reason, Report, cause

MOST_CAUSES = 10  # of one type and reason in a window; with 5 reasons and 2 types this bounds the backlog
COMBINED = "(combined from similar reports)"  # a gist for what is beyond


class Backlog:
    """Not for several threads at once: its owner holds a lock. Times are UTC seconds."""

    def __init__(self) -> None:
        self._waiting: dict[Cause, Report] = {}
        self._seen_s: dict[Cause, float] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, type_: EventType, reason: Reason, message: str, now_s: float) -> None:
        """`message`: tidy."""
        self._forget(now_s)
        of = self._bounded(cause(type_, reason, message))
        self._seen_s[of] = now_s
        earlier = self._waiting.get(of)
        if earlier is not None:
            self._waiting[of] = earlier.again(now_s)
            return
        words = f"{COMBINED} {message}" if of.gist == COMBINED else message
        self._waiting[of] = Report(of, words, now_s, now_s)

    def take(self) -> Report | None:
        """The oldest. What is taken counts no further: the same cause waits as a report of its own from now on."""
        if not self._waiting:
            return None
        return self._waiting.pop(next(iter(self._waiting)))

    def _bounded(self, of: Cause) -> Cause:
        """Messages that never read the same twice would else add an Event each."""
        known = self._seen_s.keys() | self._waiting.keys()
        similar = sum((one.type, one.reason) == (of.type, of.reason) for one in known)
        return of if of in known or similar < MOST_CAUSES else Cause(of.type, of.reason, COMBINED)

    def _forget(self, now_s: float) -> None:
        # abs: a clock that was set back leaves times that lie ahead
        self._seen_s = {of: at_s for of, at_s in self._seen_s.items() if abs(now_s - at_s) < WINDOW_S}
