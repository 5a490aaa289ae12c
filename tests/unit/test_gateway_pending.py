"""The mailboxes of those who wait."""

from __future__ import annotations

import asyncio

import pytest

from gateway.pending import Frame, Pending, RequesterGone, Waiter


def waiter(drops: list[str] | None = None, limit_bytes: int = 10) -> Waiter:
    return Waiter("id", True, lambda: drops.append("dropped") if drops is not None else None, limit_bytes)


def test_frames_come_in_order_and_free_their_room() -> None:
    waits = waiter()
    for data in (b"12345", b"67890"):
        assert waits.put(Frame(data, False))
    frames = asyncio.run(waits.take(1))
    assert [frame.data for frame in frames] == [b"12345", b"67890"]
    assert waits.buffered_bytes == 0
    assert waits.put(Frame(b"1234567890", False))


def test_one_frame_may_be_of_any_size_but_nothing_fits_behind_it() -> None:
    drops: list[str] = []
    waits = waiter(drops)
    assert waits.put(Frame(b"x" * 1000, False))
    assert not drops
    assert not waits.put(Frame(b"x", False))
    assert drops == ["dropped"]
    assert waits.buffered_bytes == 0
    with pytest.raises(RequesterGone):
        asyncio.run(waits.take(1))


def test_taking_has_a_deadline() -> None:
    with pytest.raises(TimeoutError):
        asyncio.run(waiter().take(0.01))


def test_leaving_wakes_who_takes() -> None:
    async def leave() -> None:
        waits = waiter()
        taking = asyncio.create_task(waits.take(10))
        await asyncio.sleep(0)
        waits.leave()
        with pytest.raises(RequesterGone):
            await taking

    asyncio.run(leave())


def test_an_id_leaves_with_its_end() -> None:
    pending, waits = Pending(), waiter()
    pending.add(waits)
    assert pending.deliver(waits, Frame(b"1", False))
    assert pending.get("id") is waits
    assert pending.deliver(waits, Frame(None, True))
    assert pending.get("id") is None
    assert not pending.deliver(waits, Frame(b"2", False))
    assert len(asyncio.run(waits.take(1))) == 2


def test_a_dropped_requester_is_forgotten() -> None:
    pending, waits = Pending(), waiter()
    pending.add(waits)
    pending.deliver(waits, Frame(b"1234567890", False))
    assert not pending.deliver(waits, Frame(b"1", False))
    assert len(pending) == 0
