"""What the loop has to do with all this: a few calls, which cost nothing without a STATUS_PORT."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVarTuple

from loguru import logger

from status.health import Health

if TYPE_CHECKING:
    from config import Settings
    from messaging.redelivery import History
    from reporting.usage import Ended
    from status.book import Book
    from status.desk import Desk
    from status.facts import NodeView

Given = TypeVarTuple("Given")


class Status:
    """On the loop's thread. `wake`: ends the loop's wait, from any thread."""

    def __init__(self, settings: Settings, wake: Callable[[], None]) -> None:
        self.health = Health()
        self._book: Book | None = None
        self._desk: Desk | None = None
        if settings.status_port:
            self._open(settings, wake)

    def _open(self, settings: Settings, wake: Callable[[], None]) -> None:
        from status.book import Book
        from status.desk import Desk
        from status.server import serve

        book, desk = Book(settings), Desk(wake)
        if serve(settings, self.health, book, desk):
            self._book, self._desk = book, desk

    def tell(self, why_not_ready: str, node: NodeView) -> None:
        """Each turn."""
        self.health.tell(why_not_ready)
        if self._book is not None:
            self._harmless(self._turn, why_not_ready, node)

    def ended(self, ended: Ended, record: bytes) -> None:
        if self._book is not None:
            self._harmless(self._book.ended, ended, record)

    def given_back(
        self, request_id: str, received_ms: float, attempt: int, history: History, delay_s: float, *, here: bool = False
    ) -> None:
        """`attempt`: the one that is over, or did not begin; `history`: as the next one finds it; here: the next one is made by
        this node, at once."""
        if self._book is not None and request_id:
            self._harmless(self._book.given_back, request_id, received_ms, attempt, history, delay_s, here)

    def died(self, name: str, pid: int, cause: str, kind: str, *, expected: bool, aboard: int) -> None:
        if self._book is not None:
            from status.book import Death

            self._harmless(self._book.died, name, kind, Death(time.time(), pid, cause, expected, aboard))

    def _turn(self, why_not_ready: str, node: NodeView) -> None:
        assert self._book is not None and self._desk is not None
        self._desk.serve(node)
        if self._book.is_point_due:
            self._book.add_point(node.snapshot(why_not_ready))

    def _harmless(self, note: Callable[[*Given], None], *given: *Given) -> None:
        """A bug in what only looks on must not end the node: it is said, and nothing is looked at any more."""
        try:
            note(*given)
        except Exception:
            logger.exception("the status port fails, and stands still from now on; the node goes on")
            self._book = None
