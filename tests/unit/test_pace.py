"""When a loop rests, and for how long at most."""

from __future__ import annotations

import time

from ipc.pace import BUSY_FROM, TURN_EACH_S, Pace


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
