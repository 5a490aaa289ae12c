"""A cursor against the plain idea of it: a set of acknowledged entries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.cursors import Cursor, runs

LAST = 30
KINDS = ["ack", "up to", "members", "reset", "store", "fail"]
acks = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, LAST), st.integers(0, 15)), max_size=60)


class Stored:
    """What storage would hold."""

    def __init__(self) -> None:
        self.mark_delete, self.ranges, self.partials = -1, dict[int, int](), dict[int, int]()

    def take(self, cursor: Cursor, *, fail: bool = False) -> None:
        change = cursor.take_changes()
        if change is None:
            return
        if fail:
            cursor.not_stored(change)
            return
        self.mark_delete = change.mark_delete
        self.ranges.update(change.ranges)
        self.partials.update(change.partials)
        for first in change.gone_ranges:
            self.ranges.pop(first, None)
        for entry in change.gone_partials:
            self.partials.pop(entry, None)


class Plain:
    """The model."""

    def __init__(self) -> None:
        self.acked: set[int] = set()
        self.partials: dict[int, int] = {}

    def ack(self, entry: int) -> None:
        self.acked.add(entry)
        self.partials.pop(entry, None)

    def members(self, entry: int, remaining: int) -> None:
        if entry not in self.acked:
            self.partials[entry] = self.partials.get(entry, remaining) & remaining
            if not self.partials[entry]:
                self.ack(entry)


def same(cursor: Cursor, plain: Plain) -> None:
    assert {entry for entry in range(LAST + 1) if cursor.is_acked(entry)} == {entry for entry in plain.acked if entry <= LAST}
    assert {entry: cursor.remaining(entry) for entry in range(LAST + 1) if cursor.remaining(entry) is not None} == plain.partials
    assert cursor.backlog(LAST) == LAST + 1 - len(plain.acked)
    for entry in range(LAST + 1):
        assert cursor.next_unacked(entry) == next(n for n in range(entry, LAST + 2) if n not in plain.acked)


@given(acks)
def test_it_is_a_set_of_entries_and_storage_holds_the_same(steps: list[tuple[str, int, int]]) -> None:
    cursor, plain, stored = Cursor(-1), Plain(), Stored()
    for what, entry, bits in steps:
        if what == "ack":
            assert cursor.ack(entry) == (entry not in plain.acked)
            plain.ack(entry)
        elif what == "up to":
            cursor.ack_up_to(entry)
            for each in range(entry + 1):
                plain.ack(each)
        elif what == "members":
            cursor.ack_members(entry, bits)
            plain.members(entry, bits)
        elif what == "reset":
            cursor.reset(entry - 1)
            plain.acked, plain.partials = set(range(entry)), {}
        else:
            stored.take(cursor, fail=what == "fail")
        same(cursor, plain)
    stored.take(cursor)
    same(Cursor(stored.mark_delete, stored.ranges, stored.partials), plain)


def test_nothing_changed_is_nothing_to_store() -> None:
    cursor = Cursor(4)
    assert cursor.take_changes() is None
    assert not cursor.ack(4)
    assert cursor.take_changes() is None


def test_runs_join_neighbours() -> None:
    assert runs([3, 1, 2, 7, 9, 8]) == [(1, 3), (7, 9)]
    assert runs([]) == []
