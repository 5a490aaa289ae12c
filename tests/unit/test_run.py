"""A run as others than its own task see it: held back, ended, begun, overdue."""

from __future__ import annotations

import asyncio
import time

import pytest

from answers.endpoint import NodeStopped, RequesterGone
from answers.run import Run
from backends.aboard import Aboard
from tests.real.loop import on_loop

LEFT = RequesterGone("it left")


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


@on_loop
async def test_nothing_goes_out_past_the_lease_until_it_is_renewed() -> None:
    aboard = Aboard()
    run = aboard.add(Run(1, "id"))
    aboard.lease.until_s = time.monotonic() - 1
    beginning = asyncio.create_task(run.begin())
    await asyncio.wait([beginning], timeout=0.3)
    assert not run.begun and not beginning.done()
    aboard.lease.until_s = time.monotonic() + 60
    await beginning
    assert run.begun


@on_loop
async def test_an_end_reaches_who_waits_for_the_lease() -> None:
    aboard = Aboard()
    run = aboard.add(Run(1, "id"))
    aboard.lease.until_s = time.monotonic() - 1
    beginning = asyncio.create_task(run.begin())
    await asyncio.wait([beginning], timeout=0.2)
    assert not beginning.done()
    began_s = time.monotonic()
    await aboard.end_all(NodeStopped("over"), 5.0)
    with pytest.raises(NodeStopped):
        await beginning
    assert not run.begun and time.monotonic() - began_s < 4


@on_loop
async def test_nothing_goes_out_once_the_supervisor_is_gone() -> None:
    """A process that was stopped looks, though its lease would last."""
    run = Aboard().add(Run(1, "id"))
    run.lease.is_cut = lambda: True
    beginning = asyncio.create_task(run.begin())
    await asyncio.wait([beginning], timeout=0.2)
    run.end(NodeStopped("over"))
    with pytest.raises(NodeStopped):
        await beginning
    assert not run.begun


@on_loop
async def test_an_ended_run_begins_nothing() -> None:
    said: list[str] = []

    async def announce() -> None:
        said.append("begun")

    run = Run(1, "r", announce)
    run.end(LEFT)
    with pytest.raises(RequesterGone):
        await run.begin()
    assert said == [] and not run.begun


@on_loop
async def test_a_begin_is_announced_once_and_holds_only_if_it_was() -> None:
    said: list[str] = []

    async def announce() -> None:
        said.append("begun")
        if len(said) == 1:
            raise ConnectionResetError

    run = Run(1, "r", announce)
    with pytest.raises(ConnectionResetError):
        await run.begin()
    assert not run.begun
    for _ in range(2):
        await run.begin()
    assert run.begun and said == ["begun", "begun"]


@on_loop
async def test_an_end_is_raised_where_the_work_waits() -> None:
    run = Run(1, "r")
    working = asyncio.create_task(run.endable(for_ever()))
    await asyncio.sleep(0)
    run.end(LEFT)
    run.end(NodeStopped("the first reason stands"))
    with pytest.raises(RequesterGone) as ended:
        await working
    assert ended.value is LEFT


@on_loop
async def test_what_was_ended_before_never_starts_its_work() -> None:
    started: list[str] = []

    async def work() -> None:
        started.append("work")

    run = Run(1, "r")
    run.end(LEFT)
    with pytest.raises(RequesterGone):
        await run.endable(work())
    assert started == []


@on_loop
async def test_what_is_done_behind_an_end_may_wait() -> None:
    """Its requester may have to be told."""
    run = Run(1, "r")

    async def worked() -> str:
        try:
            await run.endable(for_ever())
        except RequesterGone:
            async with asyncio.timeout(5):
                await asyncio.sleep(0.01)
        return "told"

    working = asyncio.create_task(worked())
    await asyncio.sleep(0)
    run.end(LEFT)
    assert await working == "told" and working.cancelling() == 0


@on_loop
async def test_an_end_harms_no_other_that_waits_for_the_same() -> None:
    """The first connects on behalf of all."""
    lock, runs = asyncio.Lock(), [Run(number, f"r{number}") for number in range(3)]

    async def work() -> str:
        async with lock:
            await asyncio.sleep(0.05)
        return "done"

    working = [asyncio.create_task(run.endable(work())) for run in runs]
    await asyncio.sleep(0)
    runs[0].end(LEFT)
    runs[1].end(LEFT)
    ended = await asyncio.gather(*working, return_exceptions=True)
    assert ended == [LEFT, LEFT, "done"]


@on_loop
async def test_the_end_of_the_loop_is_no_end_of_a_run() -> None:
    working = asyncio.create_task(Run(1, "r").endable(for_ever()))
    await asyncio.sleep(0)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working


@on_loop
async def test_what_is_not_over_by_its_time_is_overdue() -> None:
    aboard, now_s = Aboard(), time.monotonic()
    late, punctual = aboard.add(Run(1, "r", by_s=now_s - 1)), aboard.add(Run(2, "r", by_s=now_s + 60))
    assert aboard.overdue() == [late.number]
    aboard.remove(late)
    assert aboard.overdue() == []
    aboard.remove(punctual)


@on_loop
async def test_the_end_waits_for_streams_that_have_begun() -> None:
    aboard = Aboard()
    begun, waiting = aboard.add(Run(1, "a")), aboard.add(Run(2, "b"))
    await begun.begin()
    ending = asyncio.create_task(aboard.end_all(NodeStopped("over"), 30.0))
    await asyncio.wait([ending], timeout=0.1)
    assert not ending.done() and begun.ended is waiting.ended is not None
    aboard.remove(begun)
    await asyncio.wait_for(ending, 5)
    assert isinstance(aboard.add(Run(3, "c")).ended, NodeStopped)


@on_loop
async def test_the_end_does_not_wait_for_ever() -> None:
    aboard = Aboard()
    await aboard.add(Run(1, "a")).begin()
    await asyncio.wait_for(aboard.end_all(NodeStopped("over"), 0.1), 5)
