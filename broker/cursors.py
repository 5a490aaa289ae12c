"""A cursor: which entries of a topic one subscription has acknowledged, and what of that is not stored yet.

Everything up to `mark_delete` is acknowledged, and so are the ranges above it; of a batch also single members may be.
A topic's entry ids have no gaps, so that what is left can be counted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class CursorChange:
    """What storage has to do to hold the cursor as it is now. Ranges are first → last, inclusive."""

    mark_delete: int
    ranges: dict[int, int]
    gone_ranges: list[int]
    partials: dict[int, int]
    gone_partials: list[int]


class Cursor:
    """`ranges`: first → last of what is acknowledged above `mark_delete`; `partials`: entry → bits of the batch's
    members that are not acknowledged."""

    def __init__(self, mark_delete: int, ranges: Mapping[int, int] | None = None, partials: Mapping[int, int] | None = None) -> None:
        self.mark_delete = mark_delete
        self._firsts = sorted(ranges or ())
        self._lasts = [(ranges or {})[first] for first in self._firsts]
        self._acked_above = sum(last - first + 1 for first, last in zip(self._firsts, self._lasts, strict=True))
        self._partials = dict(partials or {})
        self._touched: set[int] = set()
        self._touched_partials: set[int] = set()
        self._stored_mark = mark_delete

    def is_acked(self, entry: int) -> bool:
        if entry <= self.mark_delete:
            return True
        position = bisect_right(self._firsts, entry) - 1
        return position >= 0 and entry <= self._lasts[position]

    def remaining(self, entry: int) -> int | None:
        """Bits of the members that are not acknowledged yet; None: all of them."""
        return self._partials.get(entry)

    def backlog(self, last_entry: int) -> int:
        """Entries up to `last_entry` that are not acknowledged."""
        return max(0, last_entry - self.mark_delete - self._acked_above)

    def next_unacked(self, entry: int) -> int:
        """The first from `entry` on that is not acknowledged."""
        if entry <= self.mark_delete:
            entry = self.mark_delete + 1
        position = bisect_right(self._firsts, entry) - 1
        if position >= 0 and entry <= self._lasts[position]:
            return self._lasts[position] + 1
        return entry

    def ack(self, entry: int) -> bool:
        """False: it was acknowledged before."""
        if self.is_acked(entry):
            return False
        self._forget_partial(entry)
        if entry == self.mark_delete + 1:
            self._advance(entry)
        else:
            self._insert(entry)
        return True

    def ack_members(self, entry: int, remaining: int) -> bool:
        """Of a batch only the members whose bit is 0 in `remaining`. True: with them all of it is acknowledged."""
        if self.is_acked(entry):
            return False
        remaining &= self._partials.get(entry, remaining)
        if not remaining:
            return self.ack(entry)
        self._partials[entry] = remaining
        self._touched_partials.add(entry)
        return False

    def ack_up_to(self, entry: int) -> bool:
        """Cumulatively. False: all that was acknowledged before."""
        if entry <= self.mark_delete:
            return False
        for partial in [held for held in self._partials if held <= entry]:
            self._forget_partial(partial)
        while self._firsts and self._firsts[0] <= entry:
            entry = max(entry, self._drop_first_range())
        self._advance(entry)
        return True

    def reset(self, mark_delete: int) -> None:
        """To before `mark_delete + 1`, whatever was acknowledged."""
        self._touched.update(self._firsts)
        self._touched_partials.update(self._partials)
        self._firsts, self._lasts, self._acked_above, self._partials = [], [], 0, {}
        self.mark_delete = mark_delete

    def take_changes(self) -> CursorChange | None:
        """What changed since the last call; None: nothing."""
        if not self._touched and not self._touched_partials and self.mark_delete == self._stored_mark:
            return None
        current = {first: last for first in self._touched if (last := self._last_of(first)) is not None}
        partials = {entry: self._partials[entry] for entry in self._touched_partials if entry in self._partials}
        change = CursorChange(
            self.mark_delete,
            current,
            [first for first in self._touched if first not in current],
            partials,
            [entry for entry in self._touched_partials if entry not in partials],
        )
        self._touched, self._touched_partials, self._stored_mark = set(), set(), self.mark_delete
        return change

    def not_stored(self, change: CursorChange) -> None:
        """Storing a change failed: it is part of the next one."""
        self._touched.update(change.ranges, change.gone_ranges)
        self._touched_partials.update(change.partials, change.gone_partials)
        self._stored_mark = -2

    def _last_of(self, first: int) -> int | None:
        position = bisect_right(self._firsts, first) - 1
        return self._lasts[position] if position >= 0 and self._firsts[position] == first else None

    def _forget_partial(self, entry: int) -> None:
        if self._partials.pop(entry, None) is not None:
            self._touched_partials.add(entry)

    def _advance(self, entry: int) -> None:
        self.mark_delete = entry
        if self._firsts and self._firsts[0] == entry + 1:
            self.mark_delete = self._drop_first_range()

    def _drop_first_range(self) -> int:
        """Returns its last entry."""
        first, last = self._firsts.pop(0), self._lasts.pop(0)
        self._acked_above -= last - first + 1
        self._touched.add(first)
        return last

    def _insert(self, entry: int) -> None:
        """Into the ranges, joined with the neighbours that it touches."""
        self._acked_above += 1
        at = bisect_right(self._firsts, entry)
        joins_left = at > 0 and self._lasts[at - 1] == entry - 1
        joins_right = at < len(self._firsts) and self._firsts[at] == entry + 1
        last = self._lasts[at] if joins_right else entry
        if joins_right:
            self._touched.add(self._firsts.pop(at))
            self._lasts.pop(at)
        if joins_left:
            self._lasts[at - 1] = last
            self._touched.add(self._firsts[at - 1])
        else:
            self._firsts.insert(at, entry)
            self._lasts.insert(at, last)
            self._touched.add(entry)


def runs(entries: Iterable[int]) -> list[tuple[int, int]]:
    """Entries as runs, first and last, in order."""
    found: list[tuple[int, int]] = []
    for entry in sorted(entries):
        if found and found[-1][1] == entry - 1:
            found[-1] = (found[-1][0], entry)
        else:
            found.append((entry, entry))
    return found
