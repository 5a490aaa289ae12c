"""The ledger: every request in the node's hands, and where it stands. Pure: no clock, no process, no queue.

    waiting → dispatched → begun ┐
       ↖______/     ↘ delivering ┴→ settling → (forgotten, its key remembered)

`waiting` has no child, and stands in one of three lines (`Line`); `begun` has output on its way to the requester and can
only be ended; `delivering` is computed and holds no slot; `settling` waits for the queue to confirm what its end
published. A refusal (a final error on its way) passes the same states.

A request may come as several messages: again with the same key after a reconnect, and under another key where it was
published twice. It is one entry all the same, until all of its messages can be acknowledged.
"""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec

REMEMBERED = 10_000  # a broker that lost acknowledgements with a connection gives the newest again, and at once
Job = TypeVar("Job")


class State(enum.Enum):
    WAITING = "waiting"
    DISPATCHED = "dispatched"
    BEGUN = "begun"
    DELIVERING = "delivering"
    SETTLING = "settling"


class Line(enum.Enum):
    """What a waiting request waits for."""

    __hash__ = object.__hash__  # looked up many times for each request; enum's own is slow

    REFUSAL = "refusal"  # any child that listens: its final error is decided
    ALONE = "alone"  # a child that has nothing else, as it may be what killed two before
    TASK = "task"  # a slot


class Admission(enum.Enum):
    """What a message from the queue is to the ledger."""

    NEW = "new"
    HELD = "held"  # of a request in our hands: acknowledged together with it
    SETTLED = "settled"  # of one that has ended: acknowledge it again


class Entry(msgspec.Struct, Generic[Job], eq=False):
    """`keys`: of all its messages. `has_slot`: from its dispatch until it is computed."""

    number: int
    keys: list[Hashable]
    request_id: str | None
    job: Job
    line: Line = Line.TASK
    state: State = State.WAITING
    child: int | None = None
    has_slot: bool = False
    answered: bool = False


@dataclass
class _Memory:
    """The newest REMEMBERED of what was added."""

    items: OrderedDict[Hashable, None] = field(default_factory=OrderedDict)

    def add(self, item: Hashable) -> None:
        self.items[item] = None
        self.items.move_to_end(item)
        if len(self.items) > REMEMBERED:
            self.items.popitem(last=False)


class Ledger(Generic[Job]):
    """`Job` is whatever the owner keeps with a request; the ledger never looks into it."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry[Job]] = {}
        self._by_key: dict[Hashable, Entry[Job]] = {}
        self._by_id: dict[str, Entry[Job]] = {}  # but those that are given back: their copy may arrive any moment
        self._lines: dict[Line, OrderedDict[int, Entry[Job]]] = {line: OrderedDict() for line in Line}
        self._aboard: dict[int, set[int]] = {}
        self._quarantined: set[int] = set()
        self._slots: dict[int, int] = {}
        self._slots_in_use = 0
        self._settled_keys, self._answered_ids = _Memory(), _Memory()
        self._last_number = 0
        self.ended = self.given_back = 0

    @property
    def taken(self) -> int:
        """How many were ever admitted: each has ended, was given back, or is open still."""
        return self._last_number

    def open_states(self) -> Counter[State]:
        """Of all that have neither ended nor been given back."""
        return Counter(entry.state for entry in self._entries.values() if entry.state is not State.SETTLING)

    def judge(self, key: Hashable, request_id: str | None) -> Admission:
        if self.holder(key, request_id) is not None:
            return Admission.HELD
        if key in self._settled_keys.items or (request_id is not None and request_id in self._answered_ids.items):
            return Admission.SETTLED
        return Admission.NEW

    def holder(self, key: Hashable, request_id: str | None) -> Entry[Job] | None:
        """The entry that a HELD message belongs to."""
        if key in self._by_key or request_id is None or key in self._settled_keys.items:
            return self._by_key.get(key)
        return self._by_id.get(request_id)

    def of_id(self, request_id: str) -> Entry[Job] | None:
        """The request that is known by this id, while it is in hand."""
        return self._by_id.get(request_id)

    def join(self, entry: Entry[Job], key: Hashable) -> None:
        """Another message of a request in hand."""
        if key not in self._by_key:
            self._by_key[key] = entry
            entry.keys.append(key)

    def admit(self, key: Hashable, request_id: str | None, job: Job, line: Line = Line.TASK) -> Entry[Job]:
        """Enter a NEW one; it waits."""
        self._last_number += 1
        entry = Entry(self._last_number, [key], request_id, job, line)
        self._entries[entry.number] = self._by_key[key] = self._lines[line][entry.number] = entry
        if request_id is not None:
            self._by_id[request_id] = entry
        return entry

    def next_in(self, line: Line) -> Entry[Job] | None:
        return next(iter(self._lines[line].values()), None)

    def dispatch(self, entry: Entry[Job], child: int) -> None:
        self._expect(entry, State.WAITING)
        del self._lines[entry.line][entry.number]
        if entry.line is Line.ALONE:
            self._quarantined.add(child)
        entry.state, entry.child, entry.has_slot = State.DISPATCHED, child, True
        self._aboard.setdefault(child, set()).add(entry.number)
        self._slots[child] = self._slots.get(child, 0) + 1
        self._slots_in_use += 1

    def begin(self, number: int) -> None:
        """Its first output is about to go out."""
        entry = self._entries[number]
        if entry.state in (State.DISPATCHED, State.DELIVERING):
            entry.state = State.BEGUN

    def computed(self, number: int) -> None:
        """Only its delivery is still tried; it holds no slot any more."""
        entry = self._entries[number]
        self._free_slot(entry)
        if entry.state is State.DISPATCHED:
            entry.state = State.DELIVERING

    def wait_again(self, entry: Entry[Job]) -> None:
        """For another child, as its own has died: first in line, as it has waited before."""
        self._lines[entry.line].pop(entry.number, None)
        self._leave_child(entry)
        entry.state, entry.line = State.WAITING, Line.TASK
        self._lines[Line.TASK][entry.number] = entry
        self._lines[Line.TASK].move_to_end(entry.number, last=False)

    def refuse(self, entry: Entry[Job]) -> None:
        """Its end is decided, and only has to be told; any child can do that."""
        self._lines[entry.line].pop(entry.number, None)
        self._leave_child(entry)
        entry.state, entry.line = State.WAITING, Line.REFUSAL
        self._lines[Line.REFUSAL][entry.number] = entry

    def settle(self, entry: Entry[Job], *, answered: bool) -> None:
        """It has its end; what is left is between the node and the queue. `answered`: its requester has its final
        answer, so the same request is not computed again."""
        self._lines[entry.line].pop(entry.number, None)
        self._leave_child(entry)
        entry.state, entry.answered = State.SETTLING, answered
        if answered:
            self.ended += 1
        else:
            self.given_back += 1
            self._forget_id(entry)

    def forget(self, entry: Entry[Job]) -> None:
        """All its messages are acknowledged."""
        self._expect(entry, State.SETTLING)
        del self._entries[entry.number]
        for key in entry.keys:
            del self._by_key[key]
            self._settled_keys.add(key)
        self._forget_id(entry)
        if entry.answered and entry.request_id is not None:
            self._answered_ids.add(entry.request_id)

    def get(self, number: int) -> Entry[Job] | None:
        """The entry that a child speaks of, while it is still that child's business."""
        entry = self._entries.get(number)
        return entry if entry is not None and entry.child is not None else None

    def aboard(self, child: int) -> list[Entry[Job]]:
        """What a child has in its hands, in the order it came."""
        return [self._entries[number] for number in sorted(self._aboard.get(child, ()))]

    def load(self, child: int) -> int:
        """Slots in use in a child."""
        return self._slots.get(child, 0)

    def is_quarantined(self, child: int) -> bool:
        """It has a request that is to be alone."""
        return child in self._quarantined

    def waiting(self) -> list[Entry[Job]]:
        return [entry for line in self._lines.values() for entry in line.values()]

    def has_waiting(self) -> bool:
        return any(self._lines.values())

    def in_hand(self) -> int:
        """Requests that hold a slot or wait for one; those that wait to run alone keep no others waiting."""
        return len(self._lines[Line.TASK]) + len(self._lines[Line.REFUSAL]) + self._slots_in_use

    def count_in(self, line: Line) -> int:
        return len(self._lines[line])

    def running(self) -> int:
        """Requests that are some child's business, with a slot or without."""
        return sum(len(numbers) for numbers in self._aboard.values())

    def __len__(self) -> int:
        return len(self._entries)

    def _leave_child(self, entry: Entry[Job]) -> None:
        if entry.child is None:
            return
        self._free_slot(entry)
        self._aboard[entry.child].discard(entry.number)
        if entry.line is Line.ALONE:
            self._quarantined.discard(entry.child)
        if not self._aboard[entry.child]:
            del self._aboard[entry.child]
        entry.child = None

    def _free_slot(self, entry: Entry[Job]) -> None:
        if entry.child is not None and entry.has_slot:
            entry.has_slot = False
            self._slots[entry.child] -= 1
            self._slots_in_use -= 1
            if not self._slots[entry.child]:
                del self._slots[entry.child]

    def _forget_id(self, entry: Entry[Job]) -> None:
        if entry.request_id is not None and self._by_id.get(entry.request_id) is entry:
            del self._by_id[entry.request_id]

    @staticmethod
    def _expect(entry: Entry[Job], state: State) -> None:
        if entry.state is not state:
            raise AssertionError(f"request {entry.request_id} is {entry.state.value}, not {state.value}")
