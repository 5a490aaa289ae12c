"""The one thread that writes: what was submitted while the last commit ran goes into the next (group commit).

A commit is on the disk (fsync of the write-ahead log) before anyone is told of it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from loguru import logger

from broker.cursors import CursorChange

KEY_BITS = 40
MAX_GROUP = 5000
IDLE_S = 1.0
VACUUM_PAGES = 2000
KEPT_FREE_PAGES = 4096  # 16 MB, for the next backlog
_ROWS_AT_ONCE = (64, 8, 1)


def key(owner: int, number: int) -> int:
    """One integer of a topic's or subscription's id and an entry's number."""
    return owner << KEY_BITS | number


class Writing:
    """The open transaction, and the numbers that the next entries get."""

    def __init__(self, connection: sqlite3.Connection, next_entries: dict[int, int]) -> None:
        self.execute = connection.execute
        self.next_entries = next_entries


class Change(Protocol):
    """Something to be written. `done` is told whether it was committed."""

    def apply(self, writing: Writing) -> None: ...

    def done(self, committed: bool) -> None: ...


@dataclass(frozen=True)
class TopicRow:
    """Written with the first thing that needs it: a topic whose making failed is made with the next try."""

    topic_id: int
    name: str

    def ensure(self, writing: Writing) -> None:
        if self.topic_id not in writing.next_entries:
            writing.execute("INSERT INTO topics VALUES (?, ?, 0)", (self.topic_id, self.name))
            writing.next_entries[self.topic_id] = 0


@dataclass(eq=False, slots=True)
class Append:
    """A published entry. Times are UTC ms; `number` is set once it is written."""

    topic: TopicRow
    messages: int
    deliver_at_ms: int
    published_ms: int
    body: bytes
    finish: Callable[[Append, bool], None]
    number: int = -1

    def apply(self, writing: Writing) -> None:
        """Gives it its number; the rows themselves are inserted together."""
        self.topic.ensure(writing)
        self.number = writing.next_entries[self.topic.topic_id]
        writing.next_entries[self.topic.topic_id] = self.number + 1

    def row(self) -> tuple[int, int, int, int, bytes]:
        return key(self.topic.topic_id, self.number), self.messages, self.deliver_at_ms, self.published_ms, self.body

    def done(self, committed: bool) -> None:
        self.finish(self, committed)


@dataclass(frozen=True)
class _Told:
    """Changes of which `told` is called with whether they were committed."""

    told: Callable[[bool], None]

    def done(self, committed: bool) -> None:
        self.told(committed)


@dataclass(frozen=True)
class CreateTopic(_Told):
    topic: TopicRow

    def apply(self, writing: Writing) -> None:
        self.topic.ensure(writing)


@dataclass(frozen=True)
class DeleteTopic(_Told):
    """With its entries; it has no subscriptions."""

    topic_id: int

    def apply(self, writing: Writing) -> None:
        writing.execute("DELETE FROM topics WHERE id = ?", (self.topic_id,))
        writing.execute("DELETE FROM entries WHERE key >= ? AND key < ?", (key(self.topic_id, 0), key(self.topic_id + 1, 0)))
        writing.next_entries.pop(self.topic_id, None)


@dataclass(frozen=True)
class CreateSubscription(_Told):
    subscription_id: int
    topic: TopicRow
    name: str
    mark_delete: int

    def apply(self, writing: Writing) -> None:
        self.topic.ensure(writing)
        values = (self.subscription_id, self.topic.topic_id, self.name, self.mark_delete)
        writing.execute("INSERT INTO subscriptions VALUES (?, ?, ?, ?)", values)


@dataclass(frozen=True)
class DeleteSubscription(_Told):
    subscription_id: int

    def apply(self, writing: Writing) -> None:
        writing.execute("DELETE FROM subscriptions WHERE id = ?", (self.subscription_id,))
        for table in ("acked_ranges", "partials"):
            span = (key(self.subscription_id, 0), key(self.subscription_id + 1, 0))
            writing.execute(f"DELETE FROM {table} WHERE key >= ? AND key < ?", span)


@dataclass(frozen=True)
class MoveCursor(_Told):
    subscription_id: int
    change: CursorChange

    def apply(self, writing: Writing) -> None:
        owner, change = self.subscription_id, self.change
        writing.execute("UPDATE subscriptions SET mark_delete = ? WHERE id = ?", (change.mark_delete, owner))
        for first, last in change.ranges.items():
            writing.execute("INSERT OR REPLACE INTO acked_ranges VALUES (?, ?)", (key(owner, first), last))
        for first in change.gone_ranges:
            writing.execute("DELETE FROM acked_ranges WHERE key = ?", (key(owner, first),))
        for entry, remaining in change.partials.items():
            blob = remaining.to_bytes((remaining.bit_length() + 7) // 8, "little")
            writing.execute("INSERT OR REPLACE INTO partials VALUES (?, ?)", (key(owner, entry), blob))
        for entry in change.gone_partials:
            writing.execute("DELETE FROM partials WHERE key = ?", (key(owner, entry),))


@dataclass(frozen=True)
class DeleteEntries(_Told):
    """Runs of entry numbers, first and last."""

    topic_id: int
    runs: Sequence[tuple[int, int]]

    def apply(self, writing: Writing) -> None:
        for first, last in self.runs:
            writing.execute("DELETE FROM entries WHERE key BETWEEN ? AND ?", (key(self.topic_id, first), key(self.topic_id, last)))
        # The last entry may be among them: its number must not be given again.
        next_entry = writing.next_entries.get(self.topic_id, 0)
        writing.execute("UPDATE topics SET next_entry = ? WHERE id = ?", (next_entry, self.topic_id))


@dataclass(frozen=True)
class Barrier(_Told):
    """Nothing to write: `told` once all before it is committed."""

    def apply(self, writing: Writing) -> None:
        pass


class Writer:
    """`submit` from one thread; `post` brings the news back to it."""

    def __init__(self, connection: sqlite3.Connection, post: Callable[[Callable[[], None]], None], next_entries: dict[int, int]) -> None:
        self._connection, self._post = connection, post
        self._writing = Writing(connection, next_entries)
        self._queue: list[Change] = []
        self._changed = threading.Condition()
        self._waiting = self._closed = False
        self.queued_bytes = 0
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, change: Change) -> None:
        with self._changed:
            self._queue.append(change)
            if isinstance(change, Append):
                self.queued_bytes += len(change.body)
            if self._waiting:
                self._changed.notify()

    def close(self) -> None:
        """After all that was submitted is committed."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (group := self._take_group()) is not None:
            if group:
                self._finish(group, self._commit(group))
            else:
                self._tidy()

    def _take_group(self) -> list[Change] | None:
        """None: closed. Empty: nothing to do for IDLE_S."""
        with self._changed:
            if not self._queue and not self._closed:
                self._waiting = True
                self._changed.wait(IDLE_S)
                self._waiting = False
            if not self._queue and self._closed:
                return None
            group, self._queue = self._queue[:MAX_GROUP], self._queue[MAX_GROUP:]
            return group

    def _commit(self, group: list[Change]) -> bool:
        next_entries = dict(self._writing.next_entries)
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for change in group:
                change.apply(self._writing)
            self._insert([change for change in group if isinstance(change, Append)])
            self._connection.execute("COMMIT")
        except Exception as error:  # a full disk, most likely: say so, let the producers know, go on
            logger.error("{} changes could not be stored: {}", len(group), error)
            self._writing.next_entries = next_entries
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            return False
        return True

    def _insert(self, appends: list[Append]) -> None:
        """Many rows a statement: each step of one lets go of the interpreter, and getting it back is a wait for the
        event loop's thread."""
        position = 0
        for rows in _ROWS_AT_ONCE:
            statement = f"INSERT INTO entries VALUES {','.join(['(?,?,?,?,?)'] * rows)}"
            while len(appends) - position >= rows:
                part = appends[position : position + rows]
                self._connection.execute(statement, list(chain.from_iterable(append.row() for append in part)))
                position += rows

    def _finish(self, group: list[Change], committed: bool) -> None:
        written = sum(len(change.body) for change in group if isinstance(change, Append))
        with self._changed:
            self.queued_bytes -= written

        def tell() -> None:
            for change in group:
                change.done(committed)

        self._post(tell)

    def _tidy(self) -> None:
        """Gives pages back to the file system, a few at a time, when a large backlog is gone."""
        free_pages = self._connection.execute("PRAGMA freelist_count").fetchone()[0]
        if free_pages > KEPT_FREE_PAGES:
            # execute() would stop after the first page: the statement gives one back with each step, and has no rows.
            self._connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # only with it the file gets shorter
