"""One request in a child: compute, deliver, and the one Outcome that says how it ended."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from loguru import logger

from answers.address import Address
from answers.delivery import Couriers, Delivery, delivery
from answers.endpoint import AnotherAnswers, NodeStopped, NotAllowed, NotDelivered, Refused, RequesterGone, RequesterUnknown
from answers.run import Run
from backends.aboard import Aboard
from backends.base import Account, Backend, Call, now_ms
from backends.late import LateDeliveries, undeliverable, unwanted
from backends.overheard import Overheard
from backends.transport import UpstreamFailed
from errors import Scope, error_object, verdict
from ipc.channel import ChannelBroken
from ipc.messages import Begun, Computed, End, FromChild, Outcome, Rates, Refuse, Task
from ipc.pace import Awaited
from limits.headers import levels

if TYPE_CHECKING:
    from config import Settings

_END_BY_SCOPE: dict[Scope, End] = {Scope.REQUEST: "failed", Scope.RETRY: "retry", Scope.THROTTLE: "throttle", Scope.NODE: "trouble"}
_STOPPED = error_object("The node stopped in the middle of this answer.", "server_error", "node_stopped")
HANGS_AFTER_S = 30.0  # past all time that it could take
MOST_FREED = 64  # answers whose slot is free before they are delivered: requesters that do not take theirs may not pile up more


class Channel(Protocol):
    """To the supervisor (ipc/onloop.py). Raises ChannelBroken when it is gone."""

    def send(self, message: FromChild) -> None: ...
    async def say(self, message: FromChild) -> None: ...


class Worker:
    """What a child does with each request. `board` first, before its task runs: from then on it can be cancelled."""

    def __init__(
        self, settings: Settings, backend: Backend, couriers: Couriers, channel: Channel, late: LateDeliveries, aboard: Aboard
    ) -> None:
        self._settings, self._backend, self._couriers = settings, backend, couriers
        self._channel, self._late, self._aboard = channel, late, aboard
        self._freed: set[int] = set()

    def board(self, task: Task) -> Run:
        by_s = task.deadline_at_s + self._settings.generation_timeout_s + HANGS_AFTER_S
        return self._aboard.add(Run(task.number, task.request_id, lambda: self._channel.say(Begun(task.number)), by_s=by_s))

    def board_refusal(self, refusal: Refuse) -> Run:
        """Begun is not said: its task was over before."""
        return self._aboard.add(Run(refusal.number, refusal.request_id, by_s=refusal.deadline_at_s + HANGS_AFTER_S))

    async def compute(self, task: Task, run: Run) -> None:
        """Never raises: whatever goes wrong is this request's Outcome."""
        piece = _Piece(run, _address(task))
        try:
            outcome = await self._outcome(piece, self._computed(task, piece))
        except Exception as bug:  # a bug of ours must not lose the request, nor take the child down
            logger.exception("request {} hit a bug of the node", task.request_id)
            outcome = await _after_bug(piece, bug)
        self._report(outcome, piece)

    async def refuse(self, refusal: Refuse, run: Run) -> None:
        """Deliver an error that was decided elsewhere. A stream may have begun in a child that died since."""
        piece = _Piece(run, _address(refusal))
        try:
            outcome = await self._outcome(piece, self._refused(refusal, piece))
        except Exception:  # as above
            logger.exception("the refusal of request {} hit a bug of the node", refusal.request_id)
            outcome = Outcome(refusal.number, "undeliverable", refusal.error)
        self._report(outcome, piece)

    async def _outcome(self, piece: _Piece, work: Coroutine[Any, Any, Outcome]) -> Outcome | None:
        """None: this process is ending, and others have the request."""
        try:
            return await piece.run.endable(work)
        except (ChannelBroken, NodeStopped):
            return await self._cut(piece)
        except (RequesterGone, AnotherAnswers) as why:
            piece.account.close()
            return unwanted(piece.run.number, why)
        except NotAllowed as why:  # before anything was computed, or at the first output where only a look-up could tell
            piece.account.close()
            return undeliverable(piece.run.number, str(why))

    async def _refused(self, refusal: Refuse, piece: _Piece) -> Outcome:
        piece.way = await delivery(piece.address, self._couriers, piece.run, insists=True)
        piece.way.fail(refusal.error)
        return await self._delivered(piece, piece.way, "failed", refusal.error)

    def _pass_on_rates(self, number: int, headers: Mapping[str, str]) -> None:
        requests, tokens = levels(headers)
        if requests is not None or tokens is not None:
            self._channel.send(Rates(number, requests, tokens))

    async def _computed(self, task: Task, piece: _Piece) -> Outcome:
        piece.account.on_head = lambda headers: self._pass_on_rates(task.number, headers)
        piece.account.on_output = piece.run.note_output
        way = await self._way(piece)
        try:
            await self._answer(task, piece, way)
        except UpstreamFailed as failed:
            return await self._failed(piece, way, failed)
        if task.is_last and way.is_fenced and len(self._freed) < MOST_FREED:
            self._freed.add(task.number)
            self._channel.send(Computed(task.number))  # others wait for the slot, and the model does not for the delivery
        try:
            return await self._delivered(piece, way, "answered", None)
        finally:
            self._freed.discard(task.number)

    async def _answer(self, task: Task, piece: _Piece, way: Delivery) -> None:
        call = Call(task.data, task.stream, task.deadline_at_s, task.traceparent)
        with Awaited(self._couriers.links.pace) as awaited:
            piece.account.on_asked, piece.account.on_first = awaited.by, awaited.over
            if not self._settings.debug:
                await self._backend.answer(call, way, piece.account)
                return
            overheard = Overheard(way, self._settings, task.request_id)
            overheard.asked(task.data)
            try:
                await self._backend.answer(call, overheard, piece.account)
            finally:
                overheard.say()

    async def _way(self, piece: _Piece) -> Delivery:
        """Raises RequesterGone, AnotherAnswers, NotAllowed: not to be computed."""
        piece.way = await delivery(piece.address, self._couriers, piece.run)
        if self._aboard.was_cancelled(piece.run.request_id):
            await piece.way.await_reply()
        return piece.way

    async def _failed(self, piece: _Piece, way: Delivery, failed: UpstreamFailed) -> Outcome:
        number, failure = piece.run.number, failed.failure
        judged = verdict(failure, self._settings.secrets, phase="begun" if piece.run.begun else "waiting")
        logger.debug("request {}: {} ({})", piece.run.request_id, failure.detail, judged.scope.value)
        if judged.scope is not Scope.REQUEST:
            end = _END_BY_SCOPE[judged.scope]
            return Outcome(number, end, judged.error, judged.reason, judged.wait_s, confirm=judged.confirm)
        piece.account.close()
        way.fail(judged.error)
        return await self._delivered(piece, way, "failed", judged.error)

    async def _delivered(self, piece: _Piece, way: Delivery, end: End, error: dict[str, Any] | None) -> Outcome:
        """Raises RequesterGone, AnotherAnswers, NodeStopped."""
        number = piece.run.number
        try:
            try:
                await way.finish()
            except Refused:
                raise
            except NotDelivered as why:
                if number not in self._freed:
                    self._channel.send(Computed(number))  # the slot is free meanwhile
                self._freed.discard(number)
                await self._late.deliver(way, piece.address.deadline_at_s, why)
        except RequesterUnknown as why:
            return unwanted(number, why)
        except NotDelivered as why:
            return undeliverable(number, str(why), way.answer)
        return Outcome(number, end, error)

    async def _cut(self, piece: _Piece) -> Outcome | None:
        """Who has seen a part of a stream is told that there will be no more."""
        if piece.way is None or not piece.run.begun:
            return None
        try:
            await piece.way.cut(_STOPPED)
        except Exception as error:
            logger.debug("request {} could not be ended: {}", piece.run.request_id, error)
            return None
        piece.account.close()
        return Outcome(piece.run.number, "failed", _STOPPED)

    def _report(self, outcome: Outcome | None, piece: _Piece) -> None:
        """Complete the outcome with what the call cost, and say it."""
        piece.abandon()
        self._aboard.remove(piece.run)
        if outcome is None:
            return
        account = piece.account
        try:
            self._channel.send(
                Outcome(
                    outcome.number, outcome.end, outcome.error, outcome.reason, outcome.wait_s,
                    account.prompt_tokens, account.completion_tokens, account.tokens_source, account.upstream_model,
                    account.upstream_sent_ms, account.first_token_ms, account.last_token_ms, now_ms(), outcome.answer,
                    confirm=outcome.confirm,
                )
            )
        except ChannelBroken:
            return  # the child has noticed too, and ends


class _Piece(msgspec.Struct, eq=False):
    """What there is of one request."""

    run: Run
    address: Address
    account: Account = msgspec.field(default_factory=Account)
    way: Delivery | None = None

    def abandon(self) -> None:
        if self.way is not None:
            self.way.abandon()


async def _after_bug(piece: _Piece, bug: Exception) -> Outcome:
    """Nobody has seen anything: try again. Otherwise the requester waits for an end, and gets it if that can be."""
    number = piece.run.number
    error = error_object(f"The node failed on this request ({type(bug).__name__}).", "server_error", "node_error")
    if piece.way is None or not piece.run.begun:
        return Outcome(number, "retry", error)
    try:
        piece.way.fail(error)
        await piece.way.finish()
        return Outcome(number, "failed", error)
    except Exception:
        return Outcome(number, "gone", error)


def _address(task: Task | Refuse) -> Address:
    return Address(
        task.request_id, task.stream, task.endpoint, task.received_at_s, task.deadline_at_s, task.attempt, task.link
    )
