"""One request, looked for in the node's hands and in its memory."""

from __future__ import annotations

import time

from status.book import Book
from status.desk import Desk
from status.facts import InHand, NodeView
from status.timeline import Timeline, of_in_hand, of_notes, of_record


def look_up(request_id: str, book: Book, desk: Desk) -> Timeline | None:
    """None where this node knows nothing of it. Raises LoopSilent."""
    held = desk.ask(lambda node: _find(request_id, book, node))
    story = book.stories.get(request_id)
    if held is not None:
        return of_in_hand(held, story, time.time() * 1000)
    if story is None:
        return None
    return of_record(story.record, "this node's memory", story) if story.record else of_notes(request_id, story)


def _find(request_id: str, book: Book, node: NodeView) -> InHand | None:
    book.enter()
    return node.find(request_id)
