"""One request in a child: compute, deliver, and the one Outcome that says how it ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from loguru import logger

from answers.delivery import Address, Couriers, Delivery, delivery
from answers.endpoint import NotDelivered, Refused, RequesterGone, RequesterUnknown
from backends.base import Account, Backend, Call, now_ms
from backends.late import LateDeliveries, undeliverable
from backends.transport import UpstreamFailed
from errors import Scope, error_object, verdict
from ipc.channel import ChannelBroken
from ipc.messages import Begun, Computed, End, FromChild, Outcome, Refuse, Task

if TYPE_CHECKING:
    from config import Settings

_END_BY_SCOPE: dict[Scope, End] = {Scope.REQUEST: "failed", Scope.RETRY: "retry", Scope.THROTTLE: "throttle", Scope.NODE: "trouble"}


class Worker:
    """What a child's threads run."""

    def __init__(
        self, settings: Settings, backend: Backend, couriers: Couriers, send: Callable[[FromChild], None], late: LateDeliveries
    ) -> None:
        self._settings, self._backend, self._couriers = settings, backend, couriers
        self._send, self._late = send, late

    def compute(self, task: Task) -> None:
        """Never raises: whatever goes wrong is this request's Outcome."""
        account = Account()
        way = delivery(_address(task), self._couriers, lambda: self._send(Begun(task.number)))
        try:
            outcome = self._computed(task, way, account)
        except ChannelBroken:
            return  # nobody is left to tell; the listener is ending this process
        except Exception as bug:  # a bug of ours must not lose the request, nor take the child down
            logger.exception("request {} hit a bug of the node", task.request_id)
            outcome = self._after_bug(task, way, bug)
        if outcome is not None:
            self._report(outcome, way, account)

    @staticmethod
    def _after_bug(task: Task, way: Delivery, bug: Exception) -> Outcome:
        """Nobody has seen anything: try again. Otherwise the requester waits for an end, and gets it if that can be."""
        error = error_object(f"The node failed on this request ({type(bug).__name__}).", "server_error", "node_error")
        if not way.begun:
            return Outcome(task.number, "retry", error)
        try:
            way.fail(error)
            way.finish()
            return Outcome(task.number, "failed", error)
        except Exception:
            return Outcome(task.number, "gone", error)

    def refuse(self, task: Refuse) -> None:
        """Deliver an error that was decided elsewhere. A stream may have begun in a child that died since."""
        account = Account()
        way = delivery(_address(task), self._couriers, lambda: None)
        way.fail(task.error)
        try:
            outcome = self._delivered(task.number, way, account, "failed", task.error, _address(task))
        except ChannelBroken:
            return
        except Exception:  # as above
            logger.exception("the refusal of request {} hit a bug of the node", task.request_id)
            outcome = Outcome(task.number, "undeliverable", task.error)
        if outcome is not None:
            self._report(outcome, way, account)

    def _computed(self, task: Task, way: Delivery, account: Account) -> Outcome | None:
        call = Call(task.data, task.stream, task.deadline_at_s)
        end: End = "answered"
        error = None
        try:
            self._backend.answer(call, way, account)
        except UpstreamFailed as failed:
            judged = verdict(failed.failure, self._settings.secrets)
            logger.debug("request {}: {} ({})", task.request_id, failed.failure.detail, judged.scope.value)
            if judged.scope is not Scope.REQUEST and not way.begun:
                end = _END_BY_SCOPE[judged.scope]
                return Outcome(task.number, end, judged.error, judged.reason, judged.wait_s)
            end, error = "failed", judged.error
            account.close()
            way.fail(judged.error)
        except RequesterGone as gone:
            account.close()
            return Outcome(task.number, "gone", _gone(gone))
        return self._delivered(task.number, way, account, end, error, _address(task))

    def _delivered(
        self, number: int, way: Delivery, account: Account, end: End, error: dict[str, Any] | None, address: Address
    ) -> Outcome | None:
        """None where the delivery is still tried, apart from the slots; its outcome follows then."""
        try:
            way.finish()
            return Outcome(number, end, error)
        except RequesterGone as gone:
            return Outcome(number, "gone", _gone(gone))
        except RequesterUnknown as unknown:
            return Outcome(number, "unknown", error_object(str(unknown), "server_error", "requester_unknown"))
        except Refused as refused:
            return undeliverable(number, str(refused), way)
        except NotDelivered as not_delivered:
            self._send(Computed(number))
            self._late.add(way, address.deadline_at_s, str(not_delivered), number, end, error, lambda o: self._report(o, way, account))
            return None

    def _report(self, outcome: Outcome, way: Delivery, account: Account) -> None:
        """Complete the outcome with what the call cost, and say it."""
        way.abandon()
        try:
            self._send(
                Outcome(
                    outcome.number, outcome.end, outcome.error, outcome.reason, outcome.wait_s,
                    account.prompt_tokens, account.completion_tokens, account.tokens_source, account.upstream_model,
                    account.upstream_sent_ms, account.first_token_ms, account.last_token_ms, now_ms(), outcome.answer,
                )
            )
        except ChannelBroken:
            return  # the listener has noticed too, and is ending this process


def _address(task: Task | Refuse) -> Address:
    return Address(task.request_id, task.stream, task.endpoint, task.received_at_s, task.deadline_at_s, task.first_attempt)


def _gone(error: RequesterGone) -> dict[str, Any]:
    return error_object(f"The requester left: {error}", "server_error", "requester_gone")

