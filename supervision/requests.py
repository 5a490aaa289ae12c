"""The requests in the node's hands: what becomes of a message that arrives, of an outcome, of a dead child's requests.

Every path ends in `_finish` (a usage record, the dead letter where one is due, the acknowledgement) or in `_put_back`
(published again, then acknowledged): a message is never negatively acknowledged, as that would bring back its whole
batch, and a steady trickle of such messages keeps all of them from coming back.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from loguru import logger
from msgspec.structs import replace

from errors import error_object
from ipc.messages import Outcome, Refuse, Task
from messaging import redelivery
from messaging.envelope import Request, UnreadableRequest, decode, link_of, traceparent_of
from messaging.line import Key, Received
from messaging.publisher import Publish
from messaging.redelivery import History
from messaging.topics import DEAD_LETTER_SUBSCRIPTION, dead_letter_topic, request_topic
from reporting.ends import EndLog
from reporting.log import without_secrets
from reporting.usage import Ended, node_id, record
from supervision.journal import Aboard, Journal
from supervision.ledger import Admission, Entry, Ledger, Line, State

if TYPE_CHECKING:
    from config import Settings
    from status.status import Status

MAX_DEAD_LETTER_BYTES = 4 << 20  # below Pulsar's limit of 5 MiB for a message with its properties
MOST_ALONE, ALONE_DELAY_S = 4, 2.0  # in hand at once, of requests that run alone
REFUSAL_WITHIN_S = 10.0  # at least, though the request's own time is over


class Job(msgspec.Struct, eq=False):
    """What the node knows of one request. `refusal`: the final error that is on its way instead of a result.

    copies: the newest delivery of each of its messages. An older delivery's id would not do: after a reconnect the
    client counts the acknowledgements of a batch anew."""

    received: Received
    request: Request
    history: History
    received_at_s: float
    received_ms: float
    dispatched_ms: float | None = None
    refusal: dict[str, Any] | None = None
    dead_letter: bool = False
    copies: dict[Key, Received] = {}


class Pushback(msgspec.Struct, frozen=True):
    """An outcome that concerns the whole node: the upstream wants less (`wait_s`), or it serves nobody (`reason`), which
    is to be confirmed where it may concern the request alone."""

    error: dict[str, Any]
    wait_s: float | None
    reason: str | None
    confirm: bool = False


class Requests:
    """`publish(publish, confirmed)` confirms on the loop's thread; `acknowledge` is fire and forget."""

    def __init__(
        self,
        settings: Settings,
        publish: Callable[[Publish, Callable[[], None]], None],
        acknowledge: Callable[[Received], None],
        dice: random.Random,
        journal: Journal | None = None,
        status: Status | None = None,
    ) -> None:
        self._settings, self._publish, self._acknowledge, self._dice = settings, publish, acknowledge, dice
        self._journal, self._status = journal or Journal(None), status
        self._node, self.end_log = node_id(), EndLog(settings)
        self.ledger: Ledger[Job] = Ledger()

    # arriving

    def arrive(self, received: Received) -> None:
        history = redelivery.read_history(received.properties, received.published_ms)
        try:
            request, unreadable = decode(received.payload), None
        except UnreadableRequest as error:
            request, unreadable = _what_could_be_read(error), error
        known_as = redelivery.identity(request.request_id, received.properties)
        if not self._is_new(received, known_as, history):
            return
        lost = self._journal.recover(known_as or "")
        if lost is not None:  # this delivery may be of before, and know less
            history = replace(history, attempt=max(history.attempt, lost.attempt), deaths=max(history.deaths, lost.deaths))
        job = Job(received, request, history, time.monotonic(), _now_ms(), copies={received.key: received})
        entry = self.ledger.admit(received.key, known_as, job, Line.ALONE if history.runs_alone else Line.TASK)
        if unreadable is not None:
            self._refuse_unreadable(entry, unreadable)
        else:
            self._welcome(entry, lost)

    def _welcome(self, entry: Entry[Job], lost: Aboard | None) -> None:
        """It waits for a child, unless its time is over, or the last node died with it, or its line is long."""
        history = entry.job.history
        if redelivery.expired(history, entry.job.received_ms, self._settings.request_ttl_s):
            self._give_up(entry, self._expired_error(history))
        elif lost is not None:
            self._after_death(entry, begun=lost.begun, cause="the whole node died", others=True)
        elif entry.line is Line.ALONE and self.ledger.count_in(Line.ALONE) > MOST_ALONE:
            self._put_back(entry, history, ALONE_DELAY_S)  # they take turns, here and on other nodes

    def _is_new(self, received: Received, request_id: str | None, history: History) -> bool:
        holder = self.ledger.holder(received.key, request_id)
        if holder is not None:
            self.ledger.join(holder, received.key)
            holder.job.copies[received.key] = received
            holder.job.history = redelivery.merged(holder.job.history, history)
            return False
        if self.ledger.judge(received.key, request_id) is Admission.SETTLED:
            logger.debug("a message of request {}, which has ended, is acknowledged again", request_id)
            self._acknowledge(received)
            return False
        return True

    def _refuse_unreadable(self, entry: Entry[Job], unreadable: UnreadableRequest) -> None:
        logger.error("a message is no request and becomes a dead letter ({}): {}", unreadable.request_id or "no request_id", unreadable)
        error = error_object(f"The message is no valid request: {unreadable}", "invalid_request_error", "invalid_message")
        if unreadable.request_id and unreadable.endpoint:
            self._give_up(entry, error)
        else:
            entry.job.dead_letter = True
            self._note_error(entry.job, error)
            self._finish(entry, Outcome(entry.number, "undeliverable", error, answered_ms=_now_ms()))

    # leaving for a child

    def next_for_child(self, line: Line) -> Entry[Job] | None:
        """The next in this line. What has waited too long for a child becomes a refusal: in hand its time runs as well."""
        while (entry := self.ledger.next_in(line)) is not None:
            history = entry.job.history
            if line is Line.REFUSAL or not redelivery.expired(history, _now_ms(), self._settings.request_ttl_s):
                return entry
            self._give_up(entry, self._expired_error(history))
        return None

    def board(self, entry: Entry[Job], child: int, *, is_last: bool = False) -> Task | Refuse:
        """Note that it is the child's now; the message to send. is_last: no slot is left behind it."""
        self.ledger.dispatch(entry, child)
        job, request = entry.job, entry.job.request
        job.dispatched_ms = _now_ms()
        deadline_at_s = job.received_at_s + self._ttl_left_s(job.history, job.received_ms)
        common = (entry.number, request.request_id, request.stream, request.endpoint)
        history, link = job.history, link_of(request)
        if job.refusal is not None:
            deadline_at_s = max(deadline_at_s, time.monotonic() + REFUSAL_WITHIN_S)
            return Refuse(*common, job.refusal, job.received_at_s, deadline_at_s, history.attempt, link)
        self._journal.dispatched(entry.request_id or "", history.attempt, history.deaths)
        trace = traceparent_of(request)
        return Task(*common, bytes(request.data), job.received_at_s, deadline_at_s, history.attempt, link, trace, is_last)

    # coming back

    def begun(self, number: int) -> None:
        entry = self.ledger.get(number)
        if entry is not None:
            self.ledger.begin(number)
            self._journal.begun(entry.request_id or "")

    def computed(self, number: int) -> None:
        if self.ledger.get(number) is not None:
            self.ledger.computed(number)

    def ended(self, outcome: Outcome) -> Pushback | None:
        """What the outcome means for the request; returned: what it means for the node."""
        entry = self.ledger.get(outcome.number)
        if entry is None:
            return None  # of a request that was taken from its child meanwhile
        error = outcome.error or {}
        if outcome.end == "retry":
            self._try_again(entry, error, outcome.wait_s or 0.0)
            return None
        if outcome.end == "busy":
            self._put_back(entry, entry.job.history, redelivery.FIRST_DELAY_S)
            return None
        if outcome.end == "throttle":
            self._put_back(entry, entry.job.history, outcome.wait_s or redelivery.FIRST_DELAY_S)
            return Pushback(error, outcome.wait_s, outcome.reason)
        if outcome.end == "trouble":
            if outcome.confirm:  # it may be this request's own fault, and then it may not come for ever
                self._try_again(entry, error)
            else:
                self._in_trouble(entry, error)
            return Pushback(error, outcome.wait_s, outcome.reason, outcome.confirm)
        if outcome.end == "undeliverable":
            entry.job.dead_letter = True
            if entry.job.refusal is None:
                self._note_error(entry.job, error)
        self._finish(entry, outcome)
        return None

    def child_died(self, child: int, cause: str, *, blame: bool, others: bool = True) -> None:
        """Its requests: what had begun to stream is ended with an error, all else is tried again.

        blame: an attempt is counted, as the request may be what killed it; others: there are children left to try it here."""
        for entry in reversed(self.ledger.aboard(child)):  # so that the first of them is first in line again
            if entry.job.refusal is not None:
                self.ledger.refuse(entry)  # any other child can deliver it
            elif blame or entry.state is State.BEGUN:
                self._after_death(entry, begun=entry.state is State.BEGUN, cause=cause, others=others)
            else:
                self._put_back(entry, entry.job.history, 0.0)

    def give_back_waiting(self, delay_s: float = 0.0) -> int:
        """Hand what no child has to other nodes, uncounted. Refusals stay: any child of ours can deliver them."""
        waiting = [entry for entry in self.ledger.waiting() if entry.job.refusal is None]
        for entry in waiting:
            self._put_back(entry, entry.job.history, delay_s)
        return len(waiting)

    def refuse_waiting(self, error: dict[str, Any]) -> None:
        """Answer what no child has with the trouble of the whole node."""
        for entry in self.ledger.waiting():
            if entry.job.refusal is None:
                self._refuse(entry, error)

    # decisions

    def _after_death(self, entry: Entry[Job], *, begun: bool, cause: str, others: bool) -> None:
        """Of the process that had it."""
        error = error_object("The process that worked on this request died; it was not finished.", "server_error", "node_child_died")
        job = entry.job
        job.history = replace(job.history, deaths=job.history.deaths + 1)
        if begun:
            self._refuse(entry, error)
        else:
            # Most had nothing to do with it, and their requesters wait: the first time they need no pause, and no second
            # wait behind the whole queue where another child can have them. The journal keeps the count meanwhile.
            first, error = job.history.deaths == 1, {**error, "message": f"{error['message']} ({cause})"}
            self._try_again(entry, error, at_once=first, here=first and others)

    def _try_again(
        self, entry: Entry[Job], error: dict[str, Any], wait_s: float = 0.0, *, at_once: bool = False, here: bool = False
    ) -> None:
        """`wait_s`: as the upstream asked; here: it does not go back to the queue."""
        history = redelivery.next_attempt(entry.job.history, self._settings.max_attempts)
        if history is None:
            self._give_up(entry, error)
            return
        delay_s = 0.0 if at_once else max(wait_s, redelivery.delay_s(history, self._dice))
        if redelivery.expired(history, _now_ms() + delay_s * 1000, self._settings.request_ttl_s):
            self._give_up(entry, error)
            return
        trail = redelivery.noted(entry.job.history, str(error.get("message")), self._node)
        history = replace(trail, attempt=history.attempt)
        words = "request {} {} for attempt {} in {:.1f} s: {}"
        where = "stays here" if here else "goes back"
        logger.debug(words, entry.job.request.request_id, where, history.attempt, delay_s, history.last_error)
        if here:
            if self._status is not None:
                job = entry.job
                self._status.given_back(job.request.request_id, job.received_ms, job.history.attempt, history, 0.0, here=True)
            entry.job.history = history
            self.ledger.wait_again(entry)
        else:
            self._put_back(entry, history, delay_s)

    def _in_trouble(self, entry: Entry[Job], error: dict[str, Any]) -> None:
        if self._settings.on_trouble == "answer":
            self._refuse(entry, error)
        else:
            self._put_back(entry, entry.job.history, redelivery.FIRST_DELAY_S)

    def _give_up(self, entry: Entry[Job], error: dict[str, Any]) -> None:
        """The requester gets the error, the queue a dead letter."""
        entry.job.dead_letter = True
        self._refuse(entry, error)

    def _refuse(self, entry: Entry[Job], error: dict[str, Any]) -> None:
        entry.job.refusal = error
        self._note_error(entry.job, error)
        self._journal.ended(entry.request_id or "")  # a death from now on is not its doing
        self.ledger.refuse(entry)

    def _note_error(self, job: Job, error: dict[str, Any]) -> None:
        """Where the dead letter shows it."""
        job.history = redelivery.noted(job.history, str(error.get("message")), self._node)

    def _ttl_left_s(self, history: History, now_ms: float) -> float:
        ttl_s = self._settings.request_ttl_s
        return min(max(0.0, ttl_s - (now_ms - history.published_ms) / 1000), ttl_s)  # a publisher's clock may be ahead

    def _expired_error(self, history: History) -> dict[str, Any]:
        tried = f" Its last attempt ended with: {history.last_error}" if history.last_error else ""
        waited = f"The request waited longer than {self._settings.request_ttl_s:g} s and was not computed."
        return error_object(waited + tried, "timeout", "request_expired")

    # the two ends

    def _put_back(self, entry: Entry[Job], history: History, delay_s: float) -> None:
        """It comes back before its time is over, as its requester waits for the refusal then."""
        job = entry.job
        delay_s = min(delay_s, self._ttl_left_s(history, _now_ms()))
        if self._status is not None:
            self._status.given_back(job.request.request_id, job.received_ms, job.history.attempt, history, delay_s)
        properties = {**job.received.properties, **redelivery.write_history(history)}
        topic = request_topic(self._settings.model_name)
        self._settle(entry, [Publish(topic, job.received.payload, properties, delay_s)], answered=False)

    def _finish(self, entry: Entry[Job], outcome: Outcome) -> None:
        job = entry.job
        publishes = []
        if job.dead_letter:
            publishes.append(self._dead_letter(job, outcome))
        if job.request.request_id:
            ended = _ended(entry, outcome)
            told = record(ended, self._settings, self._node)
            publishes.append(Publish(self._settings.res_topic_name, told, batched=True))
            self.end_log.say(ended)
            if self._status is not None:
                self._status.ended(ended, told)
        self._settle(entry, publishes, answered=True)

    def _dead_letter(self, job: Job, outcome: Outcome) -> Publish:
        properties = {**job.received.properties, **redelivery.write_history(job.history)}
        fits = len(job.received.payload) + len(outcome.answer or b"") < MAX_DEAD_LETTER_BYTES
        if outcome.answer is not None and job.refusal is None and fits:
            # Computed and paid for, only not deliverable: kept beside the request.
            properties[redelivery.ANSWER] = without_secrets(outcome.answer.decode("utf-8", "replace"), self._settings.secrets)
        topic = dead_letter_topic(self._settings.model_name)
        return Publish(topic, job.received.payload, properties, subscription=DEAD_LETTER_SUBSCRIPTION)

    def _settle(self, entry: Entry[Job], publishes: list[Publish], *, answered: bool) -> None:
        """Acknowledge once all is confirmed; never before, or a crash in between would lose the request."""
        self.ledger.settle(entry, answered=answered)
        self._journal.ended(entry.request_id or "")
        left = len(publishes)

        def confirmed() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self._forget(entry)

        for publish in publishes:
            self._publish(publish, confirmed)
        if not publishes:
            self._forget(entry)

    def _forget(self, entry: Entry[Job]) -> None:
        for received in entry.job.copies.values():
            self._acknowledge(received)
        self.ledger.forget(entry)


def _ended(entry: Entry[Job], outcome: Outcome) -> Ended:
    """Why it was given up says more than that its requester did not even take that."""
    job = entry.job
    error = outcome.error if outcome.end == "answered" else job.refusal or outcome.error
    return Ended(
        job.request.request_id, entry.request_id or "", job.request.stream, job.request.metadata, job.history.attempt,
        job.history.published_ms, job.received_ms, job.dispatched_ms, outcome, error, job.dead_letter, job.history.trail,
        traceparent_of(job.request),
    )


def _what_could_be_read(unreadable: UnreadableRequest) -> Request:
    data = msgspec.Raw(b"{}")
    return Request(request_id=unreadable.request_id or "", stream=unreadable.stream, endpoint=unreadable.endpoint or "", data=data)


def _now_ms() -> float:
    return round(time.time() * 1000, 3)
