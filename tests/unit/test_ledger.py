"""The ledger's states, and what it counts."""

from __future__ import annotations

import random
import time

import pytest

import supervision.ledger
from supervision.ledger import Admission, Entry, Ledger, Line, State


def admitted(ledger: Ledger[str], *keys: str) -> list[Entry[str]]:
    return [ledger.admit(key, f"id-{key}", f"job-{key}") for key in keys]


def test_the_way_of_a_request() -> None:
    ledger: Ledger[str] = Ledger()
    assert ledger.judge("k", "id-k") is Admission.NEW and ledger.next_in(Line.TASK) is None
    (entry,) = admitted(ledger, "k")
    assert (entry.state, ledger.in_hand(), ledger.running(), len(ledger)) == (State.WAITING, 1, 0, 1)
    assert ledger.get(entry.number) is None  # no child's business yet
    ledger.dispatch(entry, 7)
    assert ledger.get(entry.number) is entry and ledger.aboard(7) == [entry]
    assert (ledger.load(7), ledger.in_hand(), ledger.running()) == (1, 1, 1)
    ledger.begin(entry.number)
    assert entry.state is State.BEGUN and ledger.load(7) == 1
    ledger.settle(entry, answered=True)
    assert ledger.get(entry.number) is None and ledger.aboard(7) == []
    assert (ledger.load(7), ledger.in_hand(), ledger.running(), len(ledger)) == (0, 0, 0, 1)
    assert ledger.judge("k", "id-k") is Admission.HELD
    ledger.forget(entry)
    assert len(ledger) == 0
    assert ledger.judge("k", "id-k") is Admission.SETTLED
    assert ledger.judge("another key", "id-k") is Admission.SETTLED
    assert ledger.judge("another key", None) is Admission.NEW


def test_what_is_computed_holds_no_slot_even_when_it_begins_after() -> None:
    ledger: Ledger[str] = Ledger()
    early, late = admitted(ledger, "a", "b")
    for entry in (early, late):
        ledger.dispatch(entry, 1)
    ledger.begin(early.number)
    for entry in (early, late):
        ledger.computed(entry.number)
        ledger.computed(entry.number)
    assert (early.state, late.state) == (State.BEGUN, State.DELIVERING)
    assert (ledger.load(1), ledger.in_hand(), ledger.running()) == (0, 0, 2)
    ledger.begin(late.number)  # the first frame of a stream that could not be delivered at once
    assert late.state is State.BEGUN and ledger.load(1) == 0
    ledger.refuse(late)
    assert ledger.next_in(Line.REFUSAL) is late
    ledger.dispatch(late, 2)
    assert (ledger.load(2), ledger.in_hand()) == (1, 1)


def test_what_is_given_back_may_come_again() -> None:
    ledger: Ledger[str] = Ledger()
    (entry,) = admitted(ledger, "k")
    assert ledger.judge("twin", "id-k") is Admission.HELD
    ledger.settle(entry, answered=False)
    assert ledger.judge("copy", "id-k") is Admission.NEW
    copy = ledger.admit("copy", "id-k", "job")
    ledger.forget(entry)
    assert ledger.judge("k", "id-k") is Admission.SETTLED
    assert ledger.holder("third", "id-k") is copy


def test_twins_are_settled_together() -> None:
    ledger: Ledger[str] = Ledger()
    (entry,) = admitted(ledger, "k")
    for _ in range(2):
        holder = ledger.holder("twin", "id-k")
        assert holder is entry
        ledger.join(holder, "twin")
    assert entry.keys == ["k", "twin"]
    ledger.settle(entry, answered=False)
    assert ledger.judge("twin", "id-k") is Admission.HELD
    ledger.forget(entry)
    assert ledger.judge("twin", "id-k") is ledger.judge("k", None) is Admission.SETTLED
    assert ledger.judge("copy", "id-k") is Admission.NEW


def test_three_lines() -> None:
    ledger: Ledger[str] = Ledger()
    a, b, c = admitted(ledger, "a", "b", "c")
    alone = ledger.admit("alone", None, "job", Line.ALONE)
    assert (ledger.next_in(Line.TASK), ledger.next_in(Line.ALONE), ledger.next_in(Line.REFUSAL)) == (a, alone, None)
    ledger.dispatch(a, 1)
    ledger.refuse(a)
    ledger.refuse(c)
    ledger.refuse(alone)
    assert ledger.waiting() == [a, c, alone, b] and ledger.next_in(Line.ALONE) is None
    ledger.settle(a, answered=True)
    assert ledger.waiting() == [c, alone, b] and ledger.in_hand() == 3


def test_who_waits_again_is_first_in_line() -> None:
    ledger: Ledger[str] = Ledger()
    a, b = admitted(ledger, "a", "b")
    ledger.dispatch(a, 1)
    ledger.wait_again(a)
    assert ledger.waiting() == [a, b] and ledger.aboard(1) == [] and ledger.load(1) == 0
    assert ledger.get(a.number) is None, "no child has it"
    ledger.dispatch(a, 2)
    assert ledger.get(a.number) is a


def test_a_child_is_quarantined_while_a_request_that_runs_alone_is_its_business() -> None:
    ledger: Ledger[str] = Ledger()
    alone = ledger.admit("a", None, "job", Line.ALONE)
    assert not ledger.is_quarantined(1)
    ledger.dispatch(alone, 1)
    assert ledger.is_quarantined(1) and not ledger.is_quarantined(2)
    ledger.refuse(alone)
    assert not ledger.is_quarantined(1)
    ledger.dispatch(alone, 2)  # as a refusal it disturbs nobody
    assert not ledger.is_quarantined(2)


def test_a_wrong_step_is_a_bug() -> None:
    ledger: Ledger[str] = Ledger()
    (entry,) = admitted(ledger, "k")
    with pytest.raises(AssertionError):
        ledger.forget(entry)
    ledger.dispatch(entry, 1)
    with pytest.raises(AssertionError):
        ledger.dispatch(entry, 2)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision.ledger, "REMEMBERED", 10)
    ledger: Ledger[str] = Ledger()
    for n in range(30):
        (entry,) = admitted(ledger, str(n))
        ledger.settle(entry, answered=True)
        ledger.forget(entry)
    assert [ledger.judge(str(n), f"id-{n}") is Admission.SETTLED for n in range(30)] == [False] * 20 + [True] * 10


def test_ten_thousand_at_once_take_no_quadratic_time() -> None:
    ledger: Ledger[str] = Ledger()
    started_s = time.monotonic()
    entries = admitted(ledger, *map(str, range(10_000)))
    for entry in entries[::-1]:
        ledger.dispatch(entry, entry.number % 100)
        assert ledger.load(entry.number % 100) and ledger.in_hand() == 10_000
    for entry in entries:
        ledger.refuse(entry)
    for entry in entries:
        ledger.settle(entry, answered=False)
    assert time.monotonic() - started_s < 2


@pytest.mark.parametrize("seed", range(30))
def test_the_counts_are_what_the_entries_say(seed: int) -> None:
    dice, ledger = random.Random(seed), Ledger[str]()
    entries: list[Entry[str]] = []
    for step in range(200):
        entry = dice.choice(entries) if entries else None
        if entry is None or dice.random() < 0.3:
            entries += admitted(ledger, str(step))
        elif entry.state is State.WAITING:
            act = dice.choice(["dispatch", "dispatch", "refuse", "settle"])
            if act == "dispatch":
                ledger.dispatch(entry, dice.randrange(3))
            elif act == "refuse":
                ledger.refuse(entry)
            else:
                ledger.settle(entry, answered=True)
        elif entry.state is State.SETTLING:
            ledger.forget(entry)
            entries.remove(entry)
        else:
            act = dice.choice(["begin", "computed", "refuse", "wait_again", "settle"])
            if act == "settle":
                ledger.settle(entry, answered=False)
            else:
                getattr(ledger, act)(entry if act in ("refuse", "wait_again") else entry.number)
        for child in range(3):
            aboard = [e for e in entries if e.child == child]
            assert ledger.aboard(child) == sorted(aboard, key=lambda e: e.number)
            assert ledger.load(child) == sum(e.has_slot for e in aboard)
        waiting = [e for e in entries if e.state is State.WAITING]
        assert {e.number for e in ledger.waiting()} == {e.number for e in waiting}
        assert ledger.in_hand() == len(waiting) + sum(e.has_slot for e in entries)
        assert len(ledger) == len(entries)
