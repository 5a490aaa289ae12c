"""One request in a child: compute, deliver, and the one Outcome that says how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
from limits.headers import levels

if TYPE_CHECKING:
    from config import Settings

_END_BY_SCOPE: dict[Scope, End] = {Scope.REQUEST: "failed", Scope.RETRY: "retry", Scope.THROTTLE: "throttle", Scope.NODE: "trouble"}
_STOPPED = error_object("The node stopped in the middle of this answer.", "server_error", "node_stopped")
STARTED_WITHIN_S = 1.0  # a slot was free for it


class Worker:
    """What a child's threads run. `board` first, on the listener's thread: from then on a request can be cancelled."""

    def __init__(
        self, settings: Settings, backend: Backend, couriers: Couriers, send: Callable[[FromChild], None], late: LateDeliveries,
        aboard: Aboard,
    ) -> None:
        self._settings, self._backend, self._couriers = settings, backend, couriers
        self._send, self._late, self._aboard = send, late, aboard

    def board(self, task: Task) -> Run:
        run = Run(task.number, task.request_id, lambda: self._send(Begun(task.number)))
        run.step(STARTED_WITHIN_S)
        return self._aboard.add(run)

    def board_refusal(self, refusal: Refuse) -> Run:
        """Begun is not said: its task was over before. No step is due until a thread takes it, as no slot was promised."""
        return self._aboard.add(Run(refusal.number, refusal.request_id))

    def compute(self, task: Task, run: Run) -> None:
        """Never raises: whatever goes wrong is this request's Outcome."""
        piece = _Piece(run, _address(task))
        try:
            outcome = self._computed(task, piece)
        except (ChannelBroken, NodeStopped):
            self._leave_off(piece)
            return
        except Exception as bug:  # a bug of ours must not lose the request, nor take the child down
            logger.exception("request {} hit a bug of the node", task.request_id)
            outcome = _after_bug(piece, bug)
        if outcome is not None:
            self._report(outcome, piece)

    def refuse(self, refusal: Refuse, run: Run) -> None:
        """Deliver an error that was decided elsewhere. A stream may have begun in a child that died since."""
        piece = _Piece(run, _address(refusal))
        try:
            piece.way = delivery(piece.address, self._couriers, run, insists=True)
            piece.way.fail(refusal.error)
            outcome = self._delivered(piece, piece.way, "failed", refusal.error)
        except (ChannelBroken, NodeStopped):
            self._leave_off(piece)
            return
        except NotAllowed as why:
            outcome = undeliverable(refusal.number, str(why))
        except Exception:  # as above
            logger.exception("the refusal of request {} hit a bug of the node", refusal.request_id)
            outcome = Outcome(refusal.number, "undeliverable", refusal.error)
        if outcome is not None:
            self._report(outcome, piece)

    def _pass_on_rates(self, number: int, headers: Mapping[str, str]) -> None:
        requests, tokens = levels(headers)
        if requests is not None or tokens is not None:
            self._send(Rates(number, requests, tokens))

    def _computed(self, task: Task, piece: _Piece) -> Outcome | None:
        piece.account.on_head = lambda headers: self._pass_on_rates(task.number, headers)
        piece.account.on_output = piece.run.note_output
        try:
            way = self._way(piece)
            self._answer(task, piece, way)
            return self._delivered(piece, way, "answered", None)
        except UpstreamFailed as failed:
            return self._failed(piece, way, failed)
        except (RequesterGone, AnotherAnswers) as why:
            piece.account.close()
            return unwanted(piece.run.number, why)
        except NotAllowed as why:  # before anything was computed, or at the first output where only a look-up could tell
            piece.account.close()
            return undeliverable(piece.run.number, str(why))

    def _answer(self, task: Task, piece: _Piece, way: Delivery) -> None:
        call = Call(task.data, task.stream, task.deadline_at_s, piece.run, task.traceparent)
        if not self._settings.debug:
            self._backend.answer(call, way, piece.account)
            return
        overheard = Overheard(way, self._settings, task.request_id)
        overheard.asked(task.data)
        try:
            self._backend.answer(call, overheard, piece.account)
        finally:
            overheard.say()

    def _way(self, piece: _Piece) -> Delivery:
        """Raises RequesterGone, AnotherAnswers, NotAllowed, NodeStopped: not to be computed."""
        piece.run.check()
        piece.way = delivery(piece.address, self._couriers, piece.run)
        if self._aboard.was_cancelled(piece.run.request_id):
            piece.way.await_reply()
        return piece.way

    def _failed(self, piece: _Piece, way: Delivery, failed: UpstreamFailed) -> Outcome | None:
        number, failure = piece.run.number, failed.failure
        judged = verdict(failure, self._settings.secrets, phase="begun" if piece.run.begun else "waiting")
        logger.debug("request {}: {} ({})", piece.run.request_id, failure.detail, judged.scope.value)
        if judged.scope is not Scope.REQUEST:
            end = _END_BY_SCOPE[judged.scope]
            return Outcome(number, end, judged.error, judged.reason, judged.wait_s, confirm=judged.confirm)
        piece.account.close()
        way.fail(judged.error)
        return self._delivered(piece, way, "failed", judged.error)

    def _delivered(self, piece: _Piece, way: Delivery, end: End, error: dict[str, Any] | None) -> Outcome | None:
        """None where the delivery is still tried, apart from the slots; its outcome follows then. Raises NodeStopped."""
        number = piece.run.number
        try:
            way.finish()
            return Outcome(number, end, error)
        except (RequesterGone, AnotherAnswers, RequesterUnknown) as why:
            return unwanted(number, why)
        except Refused as refused:
            return undeliverable(number, str(refused), way.answer)
        except NotDelivered as not_delivered:
            self._send(Computed(number))
            deadline_at_s = piece.address.deadline_at_s
            self._late.add(way, deadline_at_s, str(not_delivered), number, end, error, lambda outcome: self._report(outcome, piece))
            return None

    def _leave_off(self, piece: _Piece) -> None:
        """This process is ending: no outcome, as others have the request, except for who has seen a part of a stream."""
        try:
            if piece.way is not None and piece.run.begun:
                piece.way.cut(_STOPPED)
                piece.account.close()
                self._report(Outcome(piece.run.number, "failed", _STOPPED), piece)
        except Exception as error:
            logger.debug("request {} could not be ended: {}", piece.run.request_id, error)
        piece.abandon()
        self._aboard.remove(piece.run)

    def _report(self, outcome: Outcome, piece: _Piece) -> None:
        """Complete the outcome with what the call cost, and say it."""
        piece.abandon()
        self._aboard.remove(piece.run)
        account = piece.account
        try:
            self._send(
                Outcome(
                    outcome.number, outcome.end, outcome.error, outcome.reason, outcome.wait_s,
                    account.prompt_tokens, account.completion_tokens, account.tokens_source, account.upstream_model,
                    account.upstream_sent_ms, account.first_token_ms, account.last_token_ms, now_ms(), outcome.answer,
                    confirm=outcome.confirm,
                )
            )
        except ChannelBroken:
            return  # the listener has noticed too, and is ending this process


@dataclass
class _Piece:
    """What a worker has of one request."""

    run: Run
    address: Address
    account: Account = field(default_factory=Account)
    way: Delivery | None = None

    def abandon(self) -> None:
        if self.way is not None:
            self.way.abandon()


def _after_bug(piece: _Piece, bug: Exception) -> Outcome:
    """Nobody has seen anything: try again. Otherwise the requester waits for an end, and gets it if that can be."""
    number = piece.run.number
    error = error_object(f"The node failed on this request ({type(bug).__name__}).", "server_error", "node_error")
    if piece.way is None or not piece.run.begun:
        return Outcome(number, "retry", error)
    try:
        piece.way.fail(error)
        piece.way.finish()
        return Outcome(number, "failed", error)
    except Exception:
        return Outcome(number, "gone", error)


def _address(task: Task | Refuse) -> Address:
    return Address(
        task.request_id, task.stream, task.endpoint, task.received_at_s, task.deadline_at_s, task.attempt, task.link
    )
