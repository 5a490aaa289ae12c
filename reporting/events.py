"""Kubernetes Events on the AIModel: what is wrong with this node, for whoever runs it. docs/events.md says what is reported when."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from loguru import logger

from reporting.apiserver import ApiServer, Away, Conflict, Missing, Refused, Stored, own_namespace, place
from reporting.backlog import Backlog
from reporting.eventbody import WINDOW_S, Cause, EventType, Reason, Report, Subject, event_name, new_event, repetition, tidy, window

if TYPE_CHECKING:
    from config import Settings

FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 60.0
FIRST_REFUSED_DELAY_S, LONGEST_REFUSED_DELAY_S = 60.0, 600.0  # somebody has to change something first
CLOSING_DELAY_S = 0.3
_MOST_CONFLICTS = 5
_MOST_DOUBLINGS = 10


class Events:
    """Reports for the operator. A thread of its own, started by the first report; never blocks or raises into the caller.

    Whoever reports also logs the trouble: this class never repeats a report in the log. It says there, once, that and
    why it cannot report: nothing to report about or to (no AIMODEL_NAME: at DEBUG; no API server: at INFO), an API
    server that is away or refuses (at WARNING), and when it can again."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._changed = threading.Condition()
        self._backlog = Backlog()
        self._thread: threading.Thread | None = None
        self._close_by_s: float | None = None
        self._said = ""  # which obstacle the log knows of

    def warn(self, reason: Reason, message: str) -> None:
        """Broken until somebody acts: type Warning, upon which the operator marks the AIModel Failed."""
        self._report("Warning", reason, message)

    def note(self, reason: Reason, message: str) -> None:
        """Passes by itself, or has passed: type Normal."""
        self._report("Normal", reason, message)

    def close(self, within_s: float) -> None:
        """Deliver what waits, for at most so long; nothing is taken any more."""
        with self._changed:
            self._close_by_s = time.monotonic() + within_s
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(within_s)

    def _report(self, type_: EventType, reason: Reason, message: str) -> None:
        if not self._settings.aimodel_name:
            self._say("DEBUG", "unset", "AIMODEL_NAME is not set: troubles are in this log alone")
            return
        words = tidy(message, self._settings.secrets)
        with self._changed:
            if self._close_by_s is not None:
                return
            self._backlog.add(type_, reason, words, time.time())
            self._changed.notify_all()
            if self._thread is None:
                self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads to be had
            self._thread = None
            self._say("WARNING", "thread", f"Kubernetes Events cannot be reported now: {error}")

    # the thread

    def _run(self) -> None:
        where = place()
        if not where:
            self._say("INFO", "nowhere", "neither a cluster nor a kubeconfig is here: troubles are in this log alone")
        delivery = Delivery(ApiServer(), self._subject())
        while (report := self._next()) is not None:
            if where and not self._deliver(delivery, report):
                return

    def _subject(self) -> Subject:
        return Subject(self._settings.aimodel_name, self._settings.aimodel_namespace or own_namespace(), socket.gethostname())

    def _next(self) -> Report | None:
        """The next report, None once closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._backlog) or self._close_by_s is not None)
            return self._backlog.take()

    def _deliver(self, delivery: Delivery, report: Report) -> bool:
        """Until the server has it, or will never have it; False once there is no time left."""
        tries = 0
        while (delay_s := self._try(delivery, report, tries)) is not None:
            tries += 1
            if not self._rest(delay_s):
                return False
        return True

    def _try(self, delivery: Delivery, report: Report, tries: int) -> float | None:
        """How long to wait before the next try; None where there is to be none."""
        try:
            delivery.deliver(report)
        except Away as away:
            self._say("WARNING", "away", f"Kubernetes' API server does not take Events; tried again: {away}")
            return max(away.wait_s, _delay_s(tries, FIRST_DELAY_S, LONGEST_DELAY_S))
        except Refused as refused:
            change = _what_to_change(refused.status, delivery.subject)
            self._say("WARNING", f"refused {refused.status}", f"Kubernetes' API server refuses Events. {change} It said: {refused}")
            return _delay_s(tries, FIRST_REFUSED_DELAY_S, LONGEST_REFUSED_DELAY_S)
        except Exception as error:  # Unfit, or a bug of ours or of the package: this report is lost, the next may not be
            self._say("WARNING", "unfit", f"a report of {report.cause.reason} cannot become an Event: {type(error).__name__}: {error}")
            return None
        self._say_that_it_works()
        return None

    def _rest(self, delay_s: float) -> bool:
        """Until the next try; False where there is to be none. The end of the node cuts a long rest short."""
        with self._changed:
            if self._close_by_s is None:
                self._changed.wait_for(lambda: self._close_by_s is not None, delay_s)
            else:
                self._changed.wait(CLOSING_DELAY_S)
            return self._close_by_s is None or time.monotonic() < self._close_by_s

    def _say(self, level: str, obstacle: str, words: str) -> None:
        if self._said != obstacle:
            self._said = obstacle
            logger.log(level, "{}", tidy(words, self._settings.secrets))

    def _say_that_it_works(self) -> None:
        if self._said:
            self._said = ""
            logger.info("Kubernetes' API server takes Events again")


class Delivery:
    """Gets reports to the server: a cause is added, and for 10 minutes counted on the Event that tells of it already, be
    it one of this node's life before a restart. Needs no more than the rights to create and to patch."""

    def __init__(self, server: ApiServer, subject: Subject, clock: Callable[[], float] = time.time) -> None:
        self.subject = subject
        self._server, self._clock = server, clock
        self._told: dict[Cause, tuple[Stored, float]] = {}  # the Event that counts this cause now, and since when

    def deliver(self, report: Report) -> None:
        """May be called again with the same report where it raised Away or Refused: it is counted once."""
        now_s = self._clock()
        self._told = {of: (stored, at_s) for of, (stored, at_s) in self._told.items() if abs(now_s - at_s) < WINDOW_S}
        stored = self._current(report.cause, now_s)
        if stored is None or not self._count(report, stored):
            self._add(report, now_s)

    def _current(self, of: Cause, now_s: float) -> Stored | None:
        """The Event of this cause that is not 10 minutes old. Of an earlier life it may have the window's name before
        this one's; the one with this window's name is found by trying to add it."""
        if of in self._told:
            return self._told[of][0]
        found = self._look(event_name(self.subject, of, window(now_s) - 1))
        if found is None or now_s - found.created_s >= WINDOW_S:
            return None
        return self._remember(of, found, now_s)

    def _add(self, report: Report, now_s: float) -> None:
        name = event_name(self.subject, report.cause, window(now_s))
        try:
            added = self._server.create(self.subject.namespace, new_event(self.subject, report, name))
            self._remember(report.cause, added, now_s)
        except Missing as missing:
            raise Refused(str(missing), 404) from missing  # the namespace
        except Conflict as conflict:
            found = self._look(name)
            if found is None or not self._count(report, self._remember(report.cause, found, now_s)):
                raise Away("an Event was there and is not any more") from conflict

    def _count(self, report: Report, stored: Stored) -> bool:
        """Add to its count; False where it is gone (the server forgets Events after an hour)."""
        for _ in range(_MOST_CONFLICTS):
            if stored.mark == report.mark:  # carried out before, and the reply was lost
                return True
            try:
                body = repetition(report, stored.count, stored.version)
                self._remember(report.cause, self._server.patch(self.subject.namespace, stored.name, body), self._clock())
                return True
            except Missing:
                return False
            except Conflict:
                found = self._look(stored.name)
                if found is None:
                    return False
                stored = self._remember(report.cause, found, self._clock())
        raise Away("others write to the same Event all the time")

    def _look(self, name: str) -> Stored | None:
        try:
            return self._server.patch(self.subject.namespace, name, {})
        except Missing:
            return None

    def _remember(self, of: Cause, stored: Stored, now_s: float) -> Stored:
        """Since when: by the server's clock, but where that is ahead of ours, from now on."""
        known = self._told.get(of)
        since_s = known[1] if known and known[0].name == stored.name else min(stored.created_s, now_s)
        self._told[of] = (stored, since_s)
        return stored


def _delay_s(tries: int, first_s: float, longest_s: float) -> float:
    """Doubled each time, and never the same for many nodes at once."""
    return float(min(first_s * 2 ** min(tries, _MOST_DOUBLINGS), longest_s) * random.uniform(0.5, 1.0))


def _what_to_change(status: int, subject: Subject) -> str:
    if status == 401:
        return "Its credentials are not valid: check the pod's serviceAccountName, or the kubeconfig."
    if status == 403:
        return (
            f"It needs the right to create and patch events in the namespace {subject.namespace}: apply deploy/kubernetes/base/rbac.yaml "
            f"there and run the pod as its service account, or set AIMODEL_NAMESPACE to the namespace of {subject.aimodel}."
        )
    return f"Is there a namespace {subject.namespace}? Set AIMODEL_NAMESPACE." if status == 404 else "There is no way to it yet."
