"""The mailboxes of those who wait."""

from __future__ import annotations

import asyncio

import pytest

from gateway.pending import Frame, Link, Pending, RequesterGone, Waiter


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


def test_a_relay_takes_only_what_nothing_is_to_come_before() -> None:
    async def relayed() -> None:
        waits, passed, can = waiter(), [], [True]

        def relay(frame: Frame) -> bool:
            if can[0]:
                passed.append(frame.data)
            return can[0]

        waits.relay = relay
        assert waits.put(Frame(b"0", False)) and not passed, "nobody takes yet, who may have something in hand"
        assert [frame.data for frame in await waits.take(1)] == [b"0"]
        taking = asyncio.create_task(waits.take(10))
        await asyncio.sleep(0)
        assert waits.put(Frame(b"1", False)) and passed == [b"1"] and waits.relayed_at_s > 0
        can[0] = False
        assert waits.put(Frame(b"2", False))
        can[0] = True  # the connection takes more again, before who takes has come to write what waits
        assert waits.put(Frame(b"3", False)) and passed == [b"1"]
        assert [frame.data for frame in await taking] == [b"2", b"3"]
        taking = asyncio.create_task(waits.take(10))
        await asyncio.sleep(0)
        assert waits.put(Frame(b"4", True)) and passed == [b"1"], "the end is told by who takes"
        assert [frame.end for frame in await taking] == [True]

    asyncio.run(relayed())


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


class FakeLink:
    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.lost: list[tuple[str, int]] = []

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def lose(self, request_id: str, attempt: int) -> None:
        self.lost.append((request_id, attempt))


def linked(*links: Link) -> tuple[Pending, Waiter]:
    """One who waits, and these links."""
    pending, waits = Pending(), waiter()
    pending.links.update(links)
    pending.add(waits)
    return pending, waits


def test_who_leaves_is_cancelled_once_on_the_link_that_has_begun_it() -> None:
    mine, other = FakeLink(), FakeLink()
    pending, waits = linked(mine, other)
    assert pending.begin("id", 1, mine) == "go"
    for _ in range(2):
        pending.remove(waits)
    assert (mine.cancelled, other.cancelled) == (["id"], [])


def test_who_leaves_unbegun_is_cancelled_on_every_link_but_one_that_has_ended() -> None:
    mine, other, ended = FakeLink(), FakeLink(), FakeLink()
    pending, waits = linked(mine, other, ended)
    pending.begin("id", 1, ended)
    pending.release(ended, Frame(None, True))
    pending.remove(waits)
    assert (mine.cancelled, other.cancelled, ended.cancelled) == (["id"], ["id"], [])


def test_who_is_answered_elsewhere_or_in_full_is_cancelled_nowhere() -> None:
    link = FakeLink()
    pending, waits = linked(link)
    pending.deliver(waits, Frame(b"1", False))
    pending.remove(waits)
    pending, waits = linked(link)
    pending.begin("id", 1, link)
    assert pending.deliver(waits, Frame(b"1", True), link)
    pending.remove(waits)
    assert link.cancelled == []


def test_one_dropped_by_its_end_frame_needs_no_cancel() -> None:
    link = FakeLink()
    pending, waits = linked(link)
    pending.begin("id", 1, link)
    assert pending.deliver(waits, Frame(b"1234567890", False), link)
    assert not pending.deliver(waits, Frame(b"1", True), link)
    assert link.cancelled == []


def test_only_the_link_that_has_begun_it_delivers() -> None:
    mine, other = FakeLink(), FakeLink()
    pending, waits = linked(mine, other)
    assert not pending.deliver(waits, Frame(b"1", False), mine)
    pending.begin("id", 1, mine)
    assert not pending.deliver(waits, Frame(b"1", False), other)
    assert pending.deliver(waits, Frame(b"1", False), mine)
    assert not pending.deliver(waits, Frame(b"2", True))
    assert [frame.data for frame in asyncio.run(waits.take(1))] == [b"1"]
