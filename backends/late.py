"""Answers whose endpoint could not be reached: tried again within the request's time, apart from the slots."""

from __future__ import annotations

import asyncio
import time

from loguru import logger

from answers.delivery import Delivery
from answers.endpoint import AnotherAnswers, NodeStopped, NotDelivered, Refused, RequesterGone, RequesterUnknown
from errors import error_object
from ipc.messages import End, Outcome

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 15.0
MAX_KEPT_BYTES = 64 << 20


class LateDeliveries:
    """What all of a child's late answers may hold. Over MAX_KEPT_BYTES the newest is given up at once."""

    def __init__(self) -> None:
        self._bytes = 0

    async def deliver(self, way: Delivery, deadline_at_s: float, why: NotDelivered) -> None:
        """Until it is taken. Raises what `finish` raises; NotDelivered only in the end."""
        size_bytes = len(way.answer)
        if self._bytes + size_bytes > MAX_KEPT_BYTES:
            raise why
        self._bytes += size_bytes
        try:
            await _tried_again(way, deadline_at_s)
        finally:
            self._bytes -= size_bytes


async def _tried_again(way: Delivery, deadline_at_s: float) -> None:
    pause_s = FIRST_PAUSE_S
    while True:
        due_at_s = min(time.monotonic() + pause_s, deadline_at_s)  # the last try is at the deadline
        await asyncio.sleep(due_at_s - time.monotonic())
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        try:
            return await way.finish()
        except NotDelivered as error:
            if isinstance(error, Refused) or time.monotonic() >= deadline_at_s:
                raise
        except (RequesterGone, RequesterUnknown, AnotherAnswers, NodeStopped):
            raise
        except Exception as bug:  # a bug of ours: what is computed and paid for is kept, not computed again
            logger.exception("a late delivery hit a bug of the node")
            raise Refused(f"{type(bug).__name__}: {bug}") from None


_ENDS_UNWANTED: dict[type[Exception], tuple[End, str, str]] = {
    RequesterGone: ("gone", "requester_gone", "The requester left"),
    AnotherAnswers: ("busy", "requester_busy", "Another attempt is answering"),
    RequesterUnknown: ("unknown", "requester_unknown", "Nobody knows the request"),
}


def unwanted(number: int, why: RequesterGone | AnotherAnswers | RequesterUnknown) -> Outcome:
    """The end of a request whose answer nobody waits for, at least not from here."""
    end, code, words = _ENDS_UNWANTED[type(why)]
    return Outcome(number, end, error_object(f"{words}: {why}", "server_error", code))


def undeliverable(number: int, why: str, answer: bytes = b"") -> Outcome:
    """The end of a request whose answer nobody takes; the answer, where it was computed, is kept with it."""
    error = error_object(f"The answer could not be delivered: {why}", "server_error", "undeliverable")
    return Outcome(number, "undeliverable", error, answer=answer)
