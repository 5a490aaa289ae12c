"""The journal: what a node that died had aboard is known to the one that follows it, whatever state the file is in."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from supervision import journal as module
from supervision.journal import Journal


def died_with(folder: Path, journal: Journal) -> Journal:
    """The journal of a node that starts after the one of `journal` has died: its lock goes with the process."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if "journal-" in os.readlink(f"/proc/self/fd/{fd}"):
                os.close(fd)
        except OSError:
            continue
    journal._fd = -1
    return Journal(folder)


def test_what_was_aboard_is_known_after_a_death(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    for name in ("ended", "dispatched", "begun"):
        first.dispatched(name, 2, 1)
    first.begun("begun")
    first.ended("ended")
    first.ended("never there")
    second = died_with(tmp_path, first)
    assert second.recover("ended") is None
    lost = second.recover("dispatched")
    assert lost and (lost.attempt, lost.deaths, lost.begun) == (2, 1, False)
    begun = second.recover("begun")
    assert begun and begun.begun
    assert second.recover("begun") is None, "an attempt is counted once"


def test_what_did_not_come_back_yet_outlives_another_death(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    first.dispatched("a b", 1, 0)
    second = died_with(tmp_path, first)
    second.dispatched("c", 1, 0)
    third = died_with(tmp_path, second)
    assert set(third.lost) == {"a b", "c"}


def _dies_with_one_aboard(folder: Path) -> None:
    journal = Journal(folder)
    journal.dispatched("r", 3, 0)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_leaves_its_lines_and_no_lock(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_dies_with_one_aboard, args=(tmp_path,))
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    lost = Journal(tmp_path).recover("r")
    assert lost and lost.attempt == 3


def test_nodes_that_share_a_folder_have_a_journal_each(tmp_path: Path) -> None:
    first, second = Journal(tmp_path), Journal(tmp_path)
    first.dispatched("a", 1, 0)
    second.dispatched("b", 1, 0)
    assert not Journal(tmp_path).lost, "of the living nothing is taken"
    assert (tmp_path / "journal-0").read_text() != (tmp_path / "journal-1").read_text()


def test_it_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 2000)
    journal = Journal(tmp_path)
    journal.dispatched("open", 1, 0)
    for n in range(1000):
        journal.dispatched(f"r{n}", 1, 0)
        journal.ended(f"r{n}")
    assert (tmp_path / "journal-0").stat().st_size < 3000
    assert set(died_with(tmp_path, journal).lost) == {"open"}


@pytest.mark.parametrize("text", ["+ 1 0 9999999999999 whole\n+ 1 0 99", "garbage\n\n+ x y z w\n+ 1 0 9999999999999 whole\n- \n"])
def test_a_damaged_file_gives_what_can_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "journal-0").write_bytes(text.encode() + b"\xff\n")
    assert "whole" in Journal(tmp_path).lost


def test_what_would_be_refused_as_too_old_is_forgotten(tmp_path: Path) -> None:
    old_ms = int((time.time() - 1000) * 1000)
    (tmp_path / "journal-0").write_text(f"+ 1 0 {old_ms} old\n+ 1 0 {old_ms + 200_000} young\n")
    assert set(Journal(tmp_path, request_ttl_s=850.0).lost) == {"young"}


def test_a_disk_that_is_full_costs_the_counting_only(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    os.close(journal._fd)
    journal._fd = os.open("/dev/full", os.O_WRONLY)
    for n in range(3):
        journal.dispatched(str(n), 1, 0)
        journal.ended(str(n))


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    journal = Journal(None)
    journal.dispatched("a", 1, 0)
    journal.begun("a")
    journal.ended("a")
    assert journal.recover("a") is None and not list(tmp_path.iterdir())
