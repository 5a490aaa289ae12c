"""Questions of other threads to the loop, which alone may look at what it owns."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from status.facts import NodeView

ANSWERED_WITHIN_S = 5.0
MOST_WAITING = 100
Answer = TypeVar("Answer")


class LoopSilent(Exception):
    """The loop did not answer in time: it stands still, or has ended."""


class _Question:
    def __init__(self, ask: Callable[[NodeView], Any]) -> None:
        self.ask, self.answer, self.answered = ask, None, threading.Event()


class Desk:
    """`wake`: ends the loop's wait."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: queue.Queue[_Question] = queue.Queue(MOST_WAITING)

    def ask(self, ask: Callable[[NodeView], Answer]) -> Answer:
        """Blocks; raises LoopSilent."""
        question = _Question(ask)
        try:
            self._waiting.put_nowait(question)
        except queue.Full:
            raise LoopSilent(f"{MOST_WAITING} questions wait for the supervisor's loop") from None
        self._wake()
        if not question.answered.wait(ANSWERED_WITHIN_S):
            raise LoopSilent(f"the supervisor's loop did not answer within {ANSWERED_WITHIN_S:g} s")
        answer: Answer = question.answer  # type: ignore[assignment]  # what `ask` returned
        return answer

    def serve(self, node: NodeView) -> None:
        """By the loop, each turn."""
        while not self._waiting.empty():
            question = self._waiting.get_nowait()
            question.answer = question.ask(node)
            question.answered.set()
