"""When a loop rests, and for how long at most."""

from __future__ import annotations

import asyncio
import os
import time

from ipc.pace import BUSY_FROM, TURN_EACH_S, Awaited, Pace


def took_s(pace: Pace, turns: int) -> float:
    began_s = time.monotonic()
    for _ in range(turns):
        pace.rest()
    return time.monotonic() - began_s


def test_who_has_little_in_flight_never_rests() -> None:
    pace = Pace()
    pace.in_flight = BUSY_FROM - 1
    assert took_s(pace, 1000) < 1000 * TURN_EACH_S / 4


def test_who_has_much_takes_so_many_turns_a_second_at_most() -> None:
    pace = Pace()
    pace.in_flight = BUSY_FROM
    pace.rest()
    assert took_s(pace, 50) >= 50 * TURN_EACH_S * 0.9


def test_who_comes_late_does_not_rest_for_that() -> None:
    pace = Pace()
    pace.in_flight = BUSY_FROM
    pace.rest()
    time.sleep(2 * TURN_EACH_S)
    assert took_s(pace, 1) < TURN_EACH_S


def test_what_has_come_is_passed_on_first() -> None:
    """Through tasks that wake each other, as a request does on its way to the upstream."""

    async def go() -> tuple[float, float]:
        pace, loop = Pace(), asyncio.get_running_loop()
        pace.in_flight = BUSY_FROM
        pace.rest()
        began_s = time.monotonic()
        pace.rest_soon()
        first, second = loop.create_future(), loop.create_future()

        async def passes_on() -> None:
            await first
            second.set_result(time.monotonic())

        waiting = asyncio.create_task(passes_on())
        await asyncio.sleep(0)
        first.set_result(None)
        passed_s = await second
        await waiting
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return passed_s - began_s, time.monotonic() - began_s

    passed_s, rested_s = asyncio.run(go())
    assert passed_s < TURN_EACH_S / 2 < TURN_EACH_S * 0.9 < rested_s


def test_a_message_ends_a_rest() -> None:
    pace = Pace()
    pace.in_flight = BUSY_FROM
    reading, writing = os.pipe()
    pace.ends_with(reading)
    pace.rest()
    assert took_s(pace, 1) > TURN_EACH_S * 0.5, "nothing has come"
    os.write(writing, b"x")
    assert took_s(pace, 1) < TURN_EACH_S * 0.5
    os.close(reading)
    os.close(writing)


def test_what_is_awaited_ends_a_rest_until_it_has_come() -> None:
    pace = Pace()
    pace.in_flight = BUSY_FROM
    reading, writing = os.pipe()
    os.write(writing, b"a first token")
    awaited = Awaited(pace)
    awaited.by(reading)
    pace.rest()
    assert took_s(pace, 1) < TURN_EACH_S * 0.5
    awaited.over()
    assert took_s(pace, 1) > TURN_EACH_S * 0.5, "what follows it is worked on together with others"
    os.close(reading)
    os.close(writing)


def test_what_was_closed_meanwhile_ends_no_rest() -> None:
    pace = Pace()
    pace.in_flight = BUSY_FROM
    (lost, other), (reading, writing) = os.pipe(), os.pipe()
    Awaited(pace).by(lost)
    Awaited(pace).by(reading)
    os.close(lost)
    os.close(other)
    pace.rest()
    pace.rest()  # finds out
    assert took_s(pace, 1) > TURN_EACH_S * 0.5
    os.write(writing, b"x")
    assert took_s(pace, 1) < TURN_EACH_S * 0.5, "of the one that is open"
    os.close(reading)
    os.close(writing)


def test_what_has_no_descriptor_is_not_waited_for() -> None:
    pace = Pace()
    pace.in_flight = BUSY_FROM
    Awaited(pace).by(-1)
    pace.rest()
    assert took_s(pace, 1) > TURN_EACH_S * 0.5
