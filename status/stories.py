"""The latest requests that ended here or were given back: what `where` and the page can tell of one."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

KEPT, KEPT_TROUBLED = 2000, 500  # of all, and of those that did not simply end well; about 1.5 KB each
MOST_NOTES = 20


@dataclass
class Note:
    """`at_ms`: UTC milliseconds."""

    at_ms: float
    words: str


@dataclass
class Story:
    """`record`: its usage record as JSON, once it has ended; `why`: the error's message, which is in no record; `trail`: what
    its attempts ended with, on any node; `notes`: what this node did with it before."""

    record: bytes = b""
    why: str = ""
    trail: tuple[str, ...] = ()
    notes: list[Note] = field(default_factory=list)

    @property
    def is_troubled(self) -> bool:
        return bool(self.why or self.notes)


class Stories:
    """By request id; one that was retried after its end shows its latest end."""

    def __init__(self) -> None:
        self._latest: OrderedDict[str, Story] = OrderedDict()
        self._troubled: OrderedDict[str, Story] = OrderedDict()  # older ones

    def __len__(self) -> int:
        return len(self._latest) + len(self._troubled)

    def get(self, request_id: str) -> Story | None:
        return self._latest.get(request_id) or self._troubled.get(request_id)

    def ended(self, request_id: str, record: bytes, why: str, trail: tuple[str, ...]) -> None:
        story = self._of(request_id)
        story.record, story.why, story.trail = record, why, trail

    def note(self, request_id: str, note: Note) -> None:
        notes = self._of(request_id).notes
        notes.append(note)
        del notes[:-MOST_NOTES]

    def _of(self, request_id: str) -> Story:
        story = self._latest.get(request_id) or self._troubled.pop(request_id, None) or Story()
        self._latest[request_id] = story
        if len(self._latest) > KEPT:
            self._retire()
        return story

    def _retire(self) -> None:
        request_id, story = self._latest.popitem(last=False)
        if story.is_troubled:
            self._troubled[request_id] = story
            if len(self._troubled) > KEPT_TROUBLED:
                self._troubled.popitem(last=False)
