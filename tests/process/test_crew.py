"""The crew on processes of its own: spares, boot deadlines, hanging children, memory, crash loops."""

from __future__ import annotations

import os
import random
import selectors
import signal
import time
from collections.abc import Callable, Iterator

import pytest

import supervision.children
from ipc.channel import ChannelBroken, ChildEnd, PipeEnd
from ipc.messages import Alive, Lease, Ready, Stop
from supervision.children import Crew, Dead, Role


def obedient(reading: PipeEnd, writing: PipeEnd) -> None:
    serve(ChildEnd(reading, writing), Alive())


def hanging(reading: PipeEnd, writing: PipeEnd) -> None:
    serve(ChildEnd(reading, writing), Alive(overdue=[7]))


def fat(reading: PipeEnd, writing: PipeEnd) -> None:
    ballast = b"x" * (200 << 20)
    serve(ChildEnd(reading, writing), Alive())
    assert ballast


def never_ready(reading: PipeEnd, writing: PipeEnd) -> None:
    time.sleep(60)


def slow_to_start(reading: PipeEnd, writing: PipeEnd) -> None:
    time.sleep(1.5)
    obedient(reading, writing)


def short_lived(reading: PipeEnd, writing: PipeEnd) -> None:
    os._exit(3)


def serve(channel: ChildEnd, alive: Alive) -> None:
    channel.send(Ready(0))
    try:
        while messages := channel.receive(60):
            for message in messages:
                if isinstance(message, Lease):
                    channel.send(alive)
                elif isinstance(message, Stop):
                    return
    except ChannelBroken:
        return


@pytest.fixture
def crew_of() -> Iterator[Callable[..., Crew]]:
    crews: list[Crew] = []

    def make(main: Callable[..., None], count: int = 1, **options: int) -> Crew:
        roles = [Role(f"backend {n}", main, (), 4, boot_s=options.pop("boot_s", 20)) for n in range(count)]
        crews.append(Crew(roles, selectors.DefaultSelector(), random.Random(1), **options))
        return crews[-1]

    yield make
    for crew in crews:
        crew.kill_all()


def turn_until(crew: Crew, check: Callable[[], object], within_s: float = 20.0) -> list[Dead]:
    dead: list[Dead] = []
    give_up_at_s = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < give_up_at_s, f"not within {within_s:g} s; dead: {[d.cause for d in dead]}"
        crew.start_missing()
        crew.flush()
        crew._selector.select(0.05)
        crew.collect()
        dead += crew.bury()
        crew.appoint()
    return dead


def test_a_spare_takes_a_dead_ones_place_at_once(crew_of: Callable[..., Crew]) -> None:
    crew = crew_of(obedient, 3, at_work=2)
    turn_until(crew, lambda: crew.capacity() == 8 and len(crew.spares()) == 1)
    (spare,) = crew.spares()
    victim = next(child for child in crew.backends() if child.at_work)
    os.kill(victim.process.pid, signal.SIGKILL)
    killed_s = time.monotonic()
    dead: list[Dead] = []
    while not dead:
        crew._selector.select(1)
        crew.collect()
        dead = crew.bury()
    crew.appoint()
    assert spare.at_work and crew.capacity() == 8, "no request waits for a start"
    assert time.monotonic() - killed_s < 0.5
    turn_until(crew, lambda: len(crew.spares()) == 1)
    assert crew.capacity() == 8


def test_who_is_not_ready_in_time_is_killed(crew_of: Callable[..., Crew], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision.children, "LEASE_EACH_S", 0.1)
    crew = crew_of(never_ready, boot_s=1)
    crew.start_missing()
    (child,) = crew.backends()
    dead = turn_until(crew, lambda: child not in crew.backends())
    assert "not ready after 1 s" in dead[0].cause


def test_a_child_whose_requests_show_no_progress_is_killed(crew_of: Callable[..., Crew]) -> None:
    crew = crew_of(hanging)
    turn_until(crew, crew.capacity)
    (child,) = crew.backends()
    dead = turn_until(crew, lambda: child not in crew.backends(), within_s=8)
    assert "it hangs: 1 of its requests" in dead[0].cause


def test_who_takes_too_much_memory_retires_and_is_replaced(crew_of: Callable[..., Crew], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision.children, "WEIGH_EACH_S", 0.2)
    crew = crew_of(fat, 2, at_work=1, memory_limit_bytes=150 << 20)
    turn_until(crew, lambda: any(child.retires for child in crew.backends()))
    (retiring, *_) = (child for child in crew.backends() if child.retires)
    assert retiring.capacity == 0 and retiring.can_be_told, "it is drained, not killed"
    crew.send(retiring, Stop())
    dead = turn_until(crew, lambda: retiring not in crew.backends())
    assert dead[0].exit_code == 0
    assert all(place.failures == 0 for place in crew._places), "that is no failure"


def test_a_crash_loop_is_known_and_tried_again_ever_more_slowly(crew_of: Callable[..., Crew]) -> None:
    crew = crew_of(short_lived, 2)
    started_s = time.monotonic()
    dead = turn_until(crew, crew.is_in_crash_loop)
    assert len(dead) >= 6 and time.monotonic() - started_s < 15
    next_s = crew.next_start_s()
    assert next_s is None or next_s < time.monotonic() + 30


def test_who_has_served_is_replaced_without_a_pause(crew_of: Callable[..., Crew]) -> None:
    crew = crew_of(obedient)
    for _ in range(4):
        turn_until(crew, crew.capacity)
        (child,) = crew.backends()
        child.has_served = True
        os.kill(child.process.pid, signal.SIGKILL)
        turn_until(crew, lambda child=child: child not in crew.backends())  # type: ignore[misc]
        assert crew._places[0].failures <= 1


def test_a_slow_start_is_no_silence(crew_of: Callable[..., Crew], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision.children, "LEASE_EACH_S", 0.05)
    monkeypatch.setattr(supervision.children, "SILENT_AFTER_S", 0.3)
    crew = crew_of(slow_to_start)
    dead = turn_until(crew, lambda: any(child.ready for child in crew.children()), within_s=60)
    assert not dead
