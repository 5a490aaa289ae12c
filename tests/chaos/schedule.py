"""What is done to whom, and when: a pure function of the seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

# kind: how often it is chosen, and from how many to how many seconds it lasts
KINDS: dict[str, tuple[int, float, float]] = {
    "kill backend": (30, 0, 0),
    "kill model server": (7, 0, 0),
    "kill guard": (5, 0, 0),
    "stop backend": (12, 3, 15),
    "stop supervisor": (6, 2, 20),
    "kill supervisor": (8, 0.1, 6),
    "drain supervisor": (6, 0.1, 6),
    "kill gateway": (6, 0.1, 4),
    "slow upstream": (6, 3, 10),
    "hang up": (10, 0, 0),
}
BROKER = "kill broker"


@dataclass(frozen=True)
class Event:
    """`at_s` from the start; `index`: the target, modulo what is there; `duration_s`: until it goes on, or is started again."""

    at_s: float
    kind: str
    index: int
    duration_s: float

    def __str__(self) -> str:
        lasting = f", {self.duration_s:.1f} s" if self.duration_s else ""
        return f"{self.kind} #{self.index}{lasting}"


def schedule(seed: int, length_s: float, broker_every_s: float) -> list[Event]:
    """Every event of a run, in order: one every 1–4 s, and the broker's death about every `broker_every_s`."""
    return sorted([*_events(seed, length_s), *_broker(seed, length_s, broker_every_s)], key=lambda event: event.at_s)


def _events(seed: int, length_s: float) -> Iterator[Event]:
    chance = random.Random(f"{seed} events")
    at_s = 2.0
    while (at_s := at_s + chance.uniform(1, 4)) < length_s:
        (kind,) = chance.choices(list(KINDS), [weight for weight, _, _ in KINDS.values()])
        _, shortest_s, longest_s = KINDS[kind]
        yield Event(at_s, kind, chance.randrange(1 << 16), chance.uniform(shortest_s, longest_s))


def _broker(seed: int, length_s: float, every_s: float) -> Iterator[Event]:
    """Never in the last seconds: its return would only prolong the end."""
    chance = random.Random(f"{seed} broker")
    at_s = 0.0
    while (at_s := at_s + every_s * chance.uniform(0.6, 1.4)) < length_s - 5:
        yield Event(at_s, BROKER, 0, chance.uniform(0.1, 3))
