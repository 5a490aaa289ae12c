"""Streams carried on one thread, over real sockets."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from answers.streams import Streams

WITHIN_S = 20.0


class Words:
    """Over with a full stop. `heard`: what came, in its turns; `turned_by`: the threads of its turns."""

    def __init__(self, due_s: float = math.inf) -> None:
        self._ours, self.theirs = socket.socketpair()
        self._ours.setblocking(False)
        self.due_s = due_s
        self.heard = b""
        self.turned_by: set[threading.Thread] = set()

    def fileno(self) -> int:
        return self._ours.fileno()

    def turn(self) -> bool:
        self.turned_by.add(threading.current_thread())
        if time.monotonic() > self.due_s:
            raise TimeoutError("nothing came")
        self.heard += self._ours.recv(100)
        if b"!" in self.heard:
            raise ValueError(self.heard.decode())
        return self.heard.endswith(b".")


@contextlib.contextmanager
def streams() -> Iterator[tuple[Streams, ThreadPoolExecutor, list[int]]]:
    """With the number of times that `together` was called."""
    together: list[int] = []
    carrier = Streams(lambda: together.append(1))
    with ThreadPoolExecutor(50) as pool:
        yield carrier, pool, together
        carrier.close()


def test_many_are_carried_by_one_thread_to_their_ends() -> None:
    with streams() as (carrier, pool, together):
        found = [Words() for _ in range(50)]
        ends = [pool.submit(carrier.carry, words) for words in found]
        for letter in "abc.":
            for words in found:
                words.theirs.sendall(letter.encode())
        for end in ends:
            end.result(WITHIN_S)
        assert {words.heard for words in found} == {b"abc."} and together
        assert len(set.union(*(words.turned_by for words in found))) == 1


def test_what_ends_one_is_raised_where_it_is_waited_for_and_harms_no_other() -> None:
    with streams() as (carrier, pool, _):
        failing, other = Words(), Words()
        failed, ended = pool.submit(carrier.carry, failing), pool.submit(carrier.carry, other)
        failing.theirs.sendall(b"no!")
        with pytest.raises(ValueError, match="no!"):
            failed.result(WITHIN_S)
        other.theirs.sendall(b"yes.")
        ended.result(WITHIN_S)


def test_who_is_due_has_a_turn_though_nothing_came() -> None:
    with streams() as (carrier, pool, _):
        late = pool.submit(carrier.carry, Words(due_s=time.monotonic() + 0.2))
        with pytest.raises(TimeoutError):
            late.result(WITHIN_S)


def test_once_closed_it_ends_with_its_last_and_takes_no_more() -> None:
    with streams() as (carrier, pool, _):
        last = Words()
        ended = pool.submit(carrier.carry, last)
        last.theirs.sendall(b"a")
        give_up_at_s = time.monotonic() + WITHIN_S
        while not last.heard:
            assert time.monotonic() < give_up_at_s
        carrier.close()
        carrier.carry(Words())
        last.theirs.sendall(b".")
        ended.result(WITHIN_S)
        (thread,) = last.turned_by
        thread.join(WITHIN_S)
        assert not thread.is_alive()
