"""A channel on a child's loop, over real pipes: what is sent goes out together, nothing blocks, its end is told once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec
import pytest

from ipc.channel import ChannelBroken, SupervisorEnd, WorkerEnd
from ipc.messages import Alive, Begun, FromChild, Lease, Outcome, Probe, ToChild
from ipc.onloop import LoopEnd
from tests.real.loop import on_loop, until
from tests.unit.pipes import pipe

BIG = Outcome(9, "undeliverable", answer=bytes(5 << 20))  # more than a pipe holds


class CountingEnd(WorkerEnd):
    """flushes: how often it was made to write."""

    flushes = 0

    def flush(self) -> None:
        self.flushes += 1
        super().flush()


class Pipes:
    """Both ends of a channel, and the raw ends under them."""

    def __init__(self) -> None:
        self.to_child_read, self.to_child_write = pipe()
        self.from_child_read, self.from_child_write = pipe()
        self.supervisor = SupervisorEnd(self.from_child_read, self.to_child_write)
        self.worker = CountingEnd(self.to_child_read, self.from_child_write)
        self.heard: list[ToChild] = []
        self.broken = 0
        self._received: list[FromChild] = []

    def on_loop(self) -> LoopEnd:
        return LoopEnd(self.worker, self.heard.append, self._on_broken)

    def _on_broken(self) -> None:
        self.broken += 1

    def received(self) -> list[FromChild]:
        """All that has come up to now."""
        messages, broken = self.supervisor.receive()
        assert broken is None
        self._received += messages
        return self._received

    def close(self) -> None:
        for end in (self.to_child_read, self.to_child_write, self.from_child_read, self.from_child_write):
            end.close()


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    both = Pipes()
    yield both
    both.close()


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# what is heard


@on_loop
async def test_what_is_said_is_heard(pipes: Pipes) -> None:
    pipes.on_loop()
    said: list[ToChild] = [Lease(), Probe(True), Lease()]
    for message in said:
        pipes.supervisor.send(message)
    await until(lambda: pipes.heard == said, what="messages")


@on_loop
async def test_who_listens_hears_at_once_what_has_come(pipes: Pipes) -> None:
    channel = pipes.on_loop()
    pipes.supervisor.send(Lease())
    channel.listen()
    assert pipes.heard == [Lease()]
    channel.listen()
    assert pipes.heard == [Lease()] and pipes.broken == 0


@on_loop
async def test_what_came_before_the_end_is_heard(pipes: Pipes) -> None:
    pipes.on_loop()
    pipes.supervisor.send(Probe(False))
    pipes.supervisor.close()
    await until(lambda: pipes.broken, what="notice")
    assert pipes.heard == [Probe(False)]


# what is sent


@on_loop
async def test_sends_of_one_turn_go_out_together_and_in_order(pipes: Pipes) -> None:
    channel, sent = pipes.on_loop(), [Begun(number) for number in range(100)]
    for message in sent:
        channel.send(message)
    assert pipes.received() == [] and pipes.worker.flushes == 0
    await turns()
    assert pipes.received() == sent and pipes.worker.flushes == 1
    channel.send(Begun(100))
    await turns()
    assert pipes.received() == [*sent, Begun(100)]


@on_loop
async def test_say_returns_when_the_pipe_has_it(pipes: Pipes) -> None:
    channel = pipes.on_loop()
    channel.send(Begun(1))
    await channel.say(Begun(2))
    assert pipes.received() == [Begun(1), Begun(2)]


@on_loop
async def test_a_full_pipe_is_waited_for_without_blocking_the_loop(pipes: Pipes) -> None:
    channel = pipes.on_loop()
    saying = asyncio.create_task(channel.say(BIG))
    await turns()
    channel.send(Begun(1))  # behind it
    assert not saying.done()
    pipes.supervisor.send(Lease())
    await until(lambda: pipes.heard == [Lease()], what="message from the supervisor")
    assert not saying.done()
    await until(lambda: pipes.received() == [BIG, Begun(1)], what="both messages")
    await saying
    assert pipes.broken == 0


@on_loop
async def test_a_pipe_that_is_not_full_any_more_costs_nothing(pipes: Pipes) -> None:
    """It is always writable: whoever went on waiting for that would turn without end."""
    channel = pipes.on_loop()
    channel.send(BIG)
    await until(lambda: pipes.received() == [BIG], what="message")
    await channel.emptied()
    flushes = pipes.worker.flushes
    await asyncio.sleep(0.1)
    assert pipes.worker.flushes == flushes


@on_loop
async def test_all_that_is_sent_is_waited_for(pipes: Pipes) -> None:
    channel = pipes.on_loop()
    await channel.emptied()  # nothing is
    channel.send(Alive())
    await channel.emptied()
    assert pipes.received() == [Alive()]


@on_loop
async def test_who_waits_no_longer_harms_no_other(pipes: Pipes) -> None:
    channel, said = pipes.on_loop(), [msgspec.structs.replace(BIG, number=number) for number in range(2)]
    impatient, patient = (asyncio.create_task(channel.say(message)) for message in said)
    await turns()
    impatient.cancel()
    await asyncio.wait([impatient])
    assert impatient.cancelled() and not patient.done()
    await until(lambda: pipes.received() == said, what="both messages")  # the first was on its way
    await patient


# the end


@pytest.mark.parametrize("way", ["closed", "not read any more", "no message"])
@on_loop
async def test_the_end_is_told_once_and_nothing_is_sent_behind_it(pipes: Pipes, way: str) -> None:
    channel = pipes.on_loop()
    if way == "closed":
        pipes.supervisor.close()
    elif way == "not read any more":
        pipes.from_child_read.close()
        channel.send(Begun(1))
    else:
        pipes.supervisor.send(Begun(1))  # a child's word
    await until(lambda: pipes.broken, what="notice")
    with pytest.raises(ChannelBroken):
        channel.send(Begun(2))
    with pytest.raises(ChannelBroken):
        await channel.say(Begun(3))
    with pytest.raises(ChannelBroken):
        await channel.emptied()
    channel.listen()
    await asyncio.sleep(0.05)
    assert pipes.broken == 1 and channel.is_cut()


@on_loop
async def test_who_waits_for_a_full_pipe_hears_of_the_end(pipes: Pipes) -> None:
    channel = pipes.on_loop()
    saying = [asyncio.create_task(channel.say(BIG)) for _ in range(2)]
    await turns()
    pipes.supervisor.close()
    for task in saying:
        with pytest.raises(ChannelBroken):
            await task
    assert pipes.broken == 1


@on_loop
async def test_a_cut_is_seen_before_what_came_is_read(pipes: Pipes) -> None:
    """By a process that was stopped: the supervisor's last words are still unread."""
    channel = pipes.on_loop()
    assert not channel.is_cut()
    pipes.supervisor.send(Lease())
    assert not channel.is_cut()
    pipes.supervisor.close()
    assert channel.is_cut() and pipes.heard == [] and pipes.broken == 0
    await until(lambda: pipes.broken, what="notice")
    assert channel.is_cut() and pipes.heard == [Lease()]
