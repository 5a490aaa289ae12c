"""What outlives a crash: topics, entries, subscriptions and their cursors, in one SQLite file.

An entry's key is its topic's id and its number in one integer, so that a topic's entries lie together and need no other
index. Topics' ids serve as Pulsar's ledger ids; neither they nor entry numbers are ever used again, so a message id
stays unique for the life of the folder. Reads come from the event loop's thread and see what is committed; all writes
go through the writer's (broker/writer.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from broker.subscriptions import Entry
from broker.writer import KEY_BITS, Change, Writer, key

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE starts (count INTEGER NOT NULL);
INSERT INTO starts VALUES (0);
CREATE TABLE topics (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, next_entry INTEGER NOT NULL);
CREATE TABLE entries (
    key INTEGER PRIMARY KEY, messages INTEGER NOT NULL, deliver_at_ms INTEGER NOT NULL, published_ms INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE TABLE subscriptions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, topic INTEGER NOT NULL, name TEXT NOT NULL, mark_delete INTEGER NOT NULL, UNIQUE (topic, name)
);
CREATE TABLE acked_ranges (key INTEGER PRIMARY KEY, last INTEGER NOT NULL);
CREATE TABLE partials (key INTEGER PRIMARY KEY, remaining BLOB NOT NULL);
"""


class StorageUnusable(Exception):
    """The data folder cannot be had; the message says why."""


@dataclass(frozen=True)
class StoredSubscription:
    subscription_id: int
    name: str
    mark_delete: int
    ranges: dict[int, int]
    partials: dict[int, int]


@dataclass(frozen=True)
class StoredTopic:
    """`first_entry` is `next_entry` where no entry is left; `last_messages`: how many the last entry has, if it is there."""

    topic_id: int
    name: str
    first_entry: int
    next_entry: int
    last_messages: int
    subscriptions: list[StoredSubscription]


class Storage:
    """Opens the folder, which no other process may have open. Raises StorageUnusable.

    post: how the writer's thread hands a call to the thread that owns everything else.
    """

    def __init__(self, folder: Path, post: Callable[[Callable[[], None]], None]) -> None:
        with contextlib.ExitStack() as opened:
            opened.enter_context(_locked(folder))
            try:
                writing = opened.enter_context(contextlib.closing(_open(folder / "broker.sqlite")))
                self._reading = opened.enter_context(contextlib.closing(_open(folder / "broker.sqlite")))
                self.starts = _count_start(writing)
                self.topics = self._recover()
            except sqlite3.Error as error:
                raise StorageUnusable(f"{folder / 'broker.sqlite'} cannot be used: {error}") from None
            self._writer = Writer(writing, post, {topic.topic_id: topic.next_entry for topic in self.topics})
            self._closing = opened.pop_all()
        self.last_topic_id = self._last_id("topics")
        self.last_subscription_id = self._last_id("subscriptions")
        self._writer.start()

    @property
    def queued_bytes(self) -> int:
        """Of messages that wait for their commit."""
        return self._writer.queued_bytes

    def submit(self, change: Change) -> None:
        """Committed with all others that wait; then its `done` is called, in order."""
        self._writer.submit(change)

    def read(self, topic_id: int, first: int, last: int, max_entries: int, max_bytes: int) -> list[Entry]:
        """Entries from `first` to `last`, in order, until either limit is reached."""
        found: list[Entry] = []
        rows = self._reading.execute(
            "SELECT key, messages, deliver_at_ms, body FROM entries WHERE key BETWEEN ? AND ? ORDER BY key LIMIT ?",
            (key(topic_id, first), key(topic_id, last), max_entries),
        )
        with contextlib.closing(rows):
            for row_key, messages, deliver_at_ms, body in rows:
                found.append(Entry(row_key & _NUMBER, messages, deliver_at_ms, body))
                max_bytes -= len(body)
                if max_bytes <= 0:
                    break
        return found

    def fetch(self, topic_id: int, numbers: Sequence[int]) -> list[Entry]:
        """Those of the entries that are still there, in order."""
        rows = self._reading.execute(
            f"SELECT key, messages, deliver_at_ms, body FROM entries WHERE key IN ({','.join('?' * len(numbers))}) ORDER BY key",
            [key(topic_id, number) for number in numbers],
        )
        return [Entry(row_key & _NUMBER, messages, deliver_at_ms, body) for row_key, messages, deliver_at_ms, body in rows.fetchall()]

    def first_published(self, topic_id: int, since_ms: int) -> int | None:
        """The number of the first entry that was published at `since_ms` (UTC) or later."""
        found = self._reading.execute(
            "SELECT key FROM entries WHERE key BETWEEN ? AND ? AND published_ms >= ? ORDER BY key LIMIT 1",
            (key(topic_id, 0), key(topic_id, _NUMBER), since_ms),
        ).fetchone()
        return None if found is None else int(found[0]) & _NUMBER

    def close(self) -> None:
        """Commits what waits, then lets go of the folder."""
        self._writer.close()
        self._closing.close()

    def _recover(self) -> list[StoredTopic]:
        rows = self._reading.execute("SELECT id, name, next_entry FROM topics ORDER BY id").fetchall()
        return [self._recover_topic(*row) for row in rows]

    def _recover_topic(self, topic_id: int, name: str, next_entry: int) -> StoredTopic:
        low, high = key(topic_id, 0), key(topic_id, _NUMBER)
        one = "SELECT {}(key) FROM entries WHERE key BETWEEN ? AND ?"  # for each end one: SQLite goes straight to it
        first, last = (self._reading.execute(one.format(end), (low, high)).fetchone()[0] for end in ("min", "max"))
        if last is None:
            return StoredTopic(topic_id, name, next_entry, next_entry, 0, self._recover_subscriptions(topic_id))
        messages = self._reading.execute("SELECT messages FROM entries WHERE key = ?", (last,)).fetchone()[0]
        after = (last & _NUMBER) + 1
        last_messages = messages if after >= next_entry else 0
        subscriptions = self._recover_subscriptions(topic_id)
        return StoredTopic(topic_id, name, first & _NUMBER, max(next_entry, after), last_messages, subscriptions)

    def _recover_subscriptions(self, topic_id: int) -> list[StoredSubscription]:
        rows = self._reading.execute("SELECT id, name, mark_delete FROM subscriptions WHERE topic = ?", (topic_id,)).fetchall()
        return [StoredSubscription(id_, name, mark, self._ranges(id_), self._partials(id_)) for id_, name, mark in rows]

    def _ranges(self, subscription_id: int) -> dict[int, int]:
        rows = self._reading.execute("SELECT key, last FROM acked_ranges WHERE key BETWEEN ? AND ?", _span(subscription_id))
        return {row_key & _NUMBER: last for row_key, last in rows.fetchall()}

    def _partials(self, subscription_id: int) -> dict[int, int]:
        rows = self._reading.execute("SELECT key, remaining FROM partials WHERE key BETWEEN ? AND ?", _span(subscription_id))
        return {row_key & _NUMBER: int.from_bytes(remaining, "little") for row_key, remaining in rows.fetchall()}

    def _last_id(self, table: str) -> int:
        """SQLite keeps the highest id that a table ever had."""
        found = self._reading.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
        return 0 if found is None else int(found[0])


_NUMBER = (1 << KEY_BITS) - 1


def _span(owner: int) -> tuple[int, int]:
    return key(owner, 0), key(owner, _NUMBER)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder, made where it is not there; the kernel lets go of the lock however this process ends."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # what is asked of models is nobody else's business
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise StorageUnusable(f"the data folder {folder} cannot be used: {os.strerror(error.errno or 0)}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StorageUnusable(f"the data folder {folder} is in use by another broker") from None
        yield


def _open(path: Path) -> sqlite3.Connection:
    """synchronous=FULL: what a producer was told to be stored survives a power cut too."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=64)
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a new file only, and before its first table
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 4000")  # 16 MB: fewer, larger checkpoints
    connection.execute("PRAGMA journal_size_limit = 33554432")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        connection.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
    elif version != SCHEMA_VERSION:
        raise sqlite3.DatabaseError(f"it is of version {version}, and this broker knows {SCHEMA_VERSION}")
    return connection


def _count_start(connection: sqlite3.Connection) -> int:
    connection.execute("UPDATE starts SET count = count + 1")
    return int(connection.execute("SELECT count FROM starts").fetchone()[0])
