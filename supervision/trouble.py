"""What keeps the whole node from serving: said once when it begins and once when it ends, and looked at in between.

An upstream that refuses the key, lacks the model or wants money is not asked again with requests, which belong to others
then, but with a probe of the node's own, at growing intervals.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loguru import logger

from errors import ErrorObject
from ipc.messages import Probe, Probed
from reporting.eventbody import Reason
from reporting.events import Events

if TYPE_CHECKING:
    from config import Settings

START_WITHIN_S, START_EACH_S = 60.0, 2.0
LONGEST_RECHECK = 10.0  # times RECHECK_S
PROBED_WITHIN_S = 180.0  # a probe that has no answer by then has none any more
QUEUE_AWAY_S = 60.0
SPELL_OVER_AFTER_S = 10.0
_WHAT_TO_CHANGE: dict[str, str] = {
    "AuthenticationError": "check API_KEY, and what it may do at {url}",
    "ConfigurationError": "check API_URL ({url}), UPSTREAM_MODEL and MODEL_NAME",
    "APIQuotaExceededError": "add credit or raise the limit of the account at {url}; the node looks again by itself",
}


@dataclass
class _Open:
    reason: Reason
    error: ErrorObject
    message: str
    since_s: float
    met: int = 1  # by requests and probes
    probes: int = 0


class UpstreamTrouble:
    """At most one at a time. `checks_start`: nothing is received before the upstream was reached once.

    Times are monotonic seconds. `word` is for people, empty while all is well."""

    def __init__(self, settings: Settings, events: Events, dice: random.Random, now_s: float, *, checks_start: bool) -> None:
        self._settings, self._events, self._dice = settings, events, dice
        self._open: _Open | None = None
        self._starting_since_s = now_s if checks_start else None
        self._doubts = False
        self._next_probe_s = now_s
        self._asked: tuple[int, float] | None = None  # the child that has a probe, until when
        self._said_waiting = False

    @property
    def is_starting(self) -> bool:
        return self._starting_since_s is not None

    @property
    def is_hopeless(self) -> bool:
        """Somebody has to change something first."""
        return self._open is not None and self._open.reason != "APIQuotaExceededError"

    @property
    def error(self) -> ErrorObject | None:
        """For requesters, while a trouble is open."""
        return self._open.error if self._open else None

    @property
    def word(self) -> str:
        if self._open:
            return f"{self._open.reason}: {self._open.error['message']}"
        return "the upstream was not reached yet" if self.is_starting else ""

    def meet(self, reason: Reason, error: ErrorObject, now_s: float, wait_s: float | None = None) -> None:
        """It begins, or is there still."""
        if self._open is not None and self._open.reason == reason:
            self._open.met += 1
            return
        self._starting_since_s, self._doubts = None, False
        to_do = _WHAT_TO_CHANGE.get(reason, "see the log of the node, and of {url}").format(url=self._settings.api_url)
        message = f"{error['message']} To do: {to_do}."
        self._open = _Open(reason, error, message, now_s)
        logger.error("{}: {}", reason, message)
        self._events.warn(reason, message)
        self._set_next(now_s, wait_s)

    def doubt(self, now_s: float) -> None:
        """A request was refused in a way that may be its own: a probe is to tell."""
        if self._open is None and not self._doubts:
            self._doubts, self._next_probe_s = True, now_s

    def probe_due(self, now_s: float, children: list[int]) -> Probe | None:
        """What to ask now; `children`: those that live. A probe is lost with its child."""
        if self._asked is not None and (self._asked[0] not in children or now_s > self._asked[1]):
            self._asked = None
        wanted = self._open is not None or self._doubts or self.is_starting
        if not wanted or self._asked is not None or now_s < self._next_probe_s:
            return None
        return Probe(asks=not self.is_starting)

    def asked(self, child: int, now_s: float) -> None:
        self._asked = (child, now_s + PROBED_WITHIN_S)

    def heard(self, probed: Probed, now_s: float) -> None:
        self._asked = None
        if probed.error is None:
            self._on_success(now_s)
        elif probed.reason is not None:
            self._on_found(as_reason(probed.reason), probed.error, now_s)
        elif self.is_starting:
            self._on_unreached(probed.error, now_s)
        else:  # it says nothing about the trouble
            self._set_next(now_s)

    def _on_found(self, reason: Reason, error: ErrorObject, now_s: float) -> None:
        """Reported with each look: whoever reads Events may have changed something since, and thinks that it is well now."""
        self._doubts = False
        if self._open is not None and self._open.reason == reason:
            self._events.warn(reason, self._open.message)
        self.meet(reason, error, now_s)
        self._set_next(now_s)

    def _on_success(self, now_s: float) -> None:
        if self._doubts:
            logger.warning("the upstream serves this node: what it refused before concerned that request alone")
        if self._said_waiting and self.is_starting:
            logger.info("the upstream was reached")
        if self._open is not None:
            lasted = f"after {now_s - self._open.since_s:.0f} s, met {self._open.met} times"
            logger.info("{} is over {}: the node works again", self._open.reason, lasted)
            self._events.note(self._open.reason, f"The upstream serves this node again, {lasted}.")
        self._open, self._starting_since_s, self._doubts = None, None, False

    def _on_unreached(self, error: ErrorObject, now_s: float) -> None:
        assert self._starting_since_s is not None
        waited_s = now_s - self._starting_since_s
        if waited_s > START_WITHIN_S:
            message = f"{error['message']} It was tried for {waited_s:.0f} s."
            self.meet("ConfigurationError", {**error, "message": message}, now_s)
            return
        if not self._said_waiting:
            self._said_waiting = True
            logger.warning("{} Nothing is received before it is reached; tried again for {:g} s", error["message"], START_WITHIN_S)
        self._next_probe_s = now_s + START_EACH_S

    def _set_next(self, now_s: float, wait_s: float | None = None) -> None:
        """Twice as long after each look that found the same, up to LONGEST_RECHECK, and never in step with other nodes."""
        pause_s = self._settings.recheck_s
        if self._open is not None:
            pause_s = max(wait_s or 0.0, pause_s * min(2.0**self._open.probes, LONGEST_RECHECK))
            self._open.probes = min(self._open.probes + 1, 10)
        self._next_probe_s = now_s + pause_s * (0.75 + self._dice.random() / 2)


class Spell:
    """What passes by itself and may come a thousand times: said when it begins, and how often it was met once it is over.

    `began` and `over`: lines for the log, with {message} in the first, {count} and {lasted_s} in the second."""

    def __init__(self, began: str, over: str) -> None:
        self._began, self._over = began, over
        self._count, self._since_s, self._last_s = 0, 0.0, 0.0

    def meet(self, message: str, now_s: float) -> None:
        if not self._count:
            self._since_s = now_s
            logger.warning("{}", self._began.format(message=message))
        self._count, self._last_s = self._count + 1, now_s

    def look(self, now_s: float) -> None:
        """Called each turn."""
        if self._count and now_s - self._last_s > SPELL_OVER_AFTER_S:
            logger.info("{}", self._over.format(count=self._count, lasted_s=f"{self._last_s - self._since_s:.0f}"))
            self._count = 0


class QueueTroubles:
    """Pulsar's troubles: said when they begin and end; reported once they last."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._message, self._since_s, self._reported = "not subscribed yet", time.monotonic(), False

    @property
    def word(self) -> str:
        """Empty while all is well."""
        return self._message

    def meet(self, message: str, refused: bool, now_s: float) -> None:
        if refused:
            self._report("AuthenticationError", message)
        if message != self._message:
            logger.error("{}", message)
        self._since_s = self._since_s if self._message else now_s
        self._message = message

    def look(self, now_s: float) -> None:
        """Called each turn."""
        if self._message and now_s - self._since_s > QUEUE_AWAY_S:
            self._report("MessageQueueConnectionError", f"{self._message}. The node keeps trying.")

    def over(self, now_s: float, words: str) -> None:
        if self._reported:
            self._events.note("MessageQueueConnectionError", f"Pulsar is back after {now_s - self._since_s:.0f} s.")
        logger.info("{}", words)
        self._message, self._reported = "", False

    def _report(self, reason: Reason, message: str) -> None:
        if not self._reported:
            self._reported = True
            self._events.warn(reason, message)


def as_reason(name: str) -> Reason:
    reasons: dict[str, Reason] = {
        "ConfigurationError": "ConfigurationError", "AuthenticationError": "AuthenticationError",
        "APIQuotaExceededError": "APIQuotaExceededError",
    }  # fmt: skip
    return reasons.get(name, "GeneralError")


