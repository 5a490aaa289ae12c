"""The mailbox: each item once, in its order, and always a reason for the loop to wake."""

from __future__ import annotations

import os
import select
import signal
import threading
import time

import pytest

from supervision.mailbox import Mailbox


def wakes(mailbox: Mailbox[int]) -> bool:
    return bool(select.select([mailbox.fd], [], [], 0)[0])


def test_an_item_wakes_and_is_taken_once() -> None:
    mailbox: Mailbox[int] = Mailbox()
    assert not wakes(mailbox) and mailbox.take() == []
    mailbox.put(1)
    mailbox.put(2)
    assert wakes(mailbox)
    assert mailbox.take() == [1, 2]
    assert not wakes(mailbox) and mailbox.take() == []


def test_a_wake_brings_nothing() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.wake()
    assert wakes(mailbox) and mailbox.take() == [] and not wakes(mailbox)


def test_a_full_pipe_neither_blocks_nor_loses() -> None:
    mailbox: Mailbox[int] = Mailbox()
    for n in range(100_000):
        mailbox.put(n)
    taken = []
    while wakes(mailbox):
        taken += mailbox.take()
    assert taken == list(range(100_000))


def test_threads_and_a_waiting_loop() -> None:
    mailbox: Mailbox[int] = Mailbox()

    def put_all() -> None:
        for n in range(1000):
            mailbox.put(n)

    threads = [threading.Thread(target=put_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    taken: list[int] = []
    give_up_at_s = time.monotonic() + 10
    while len(taken) < 4000 and time.monotonic() < give_up_at_s:
        select.select([mailbox.fd], [], [], 1)
        taken += mailbox.take()
    assert sorted(taken) == sorted(4 * list(range(1000)))


def test_a_signal_handler_may_put() -> None:
    mailbox: Mailbox[int] = Mailbox()
    before = signal.signal(signal.SIGUSR1, lambda number, _: mailbox.put(number))
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert select.select([mailbox.fd], [], [], 1)[0] and mailbox.take() == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_byte_that_comes_late_is_read_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wakes may be held up between saying so and doing it."""
    mailbox: Mailbox[int] = Mailbox()
    late: list[bytes] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: late.append(data))
    mailbox.put(1)
    monkeypatch.setattr(os, "write", write)
    assert mailbox.take() == [1]
    write(mailbox._wake_fd, late[0])
    assert wakes(mailbox) and mailbox.take() == [] and not wakes(mailbox)
    mailbox.put(2)
    assert wakes(mailbox) and mailbox.take() == [2] and not wakes(mailbox)
