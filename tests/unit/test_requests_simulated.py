"""Requests under whatever happens: seeded dice, deaths, redeliveries, lost acknowledgements, confirmations in any order."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import msgspec
import pytest

import supervision.requests
from ipc.messages import Outcome, Refuse, Task
from messaging.consumer import Key, Received
from messaging.redelivery import PUBLISHED_MS
from tests.unit.request_fakes import DEAD, ERROR, RECORDS, TOPIC, Clock, Queue, record_of


class World(Queue):
    """A queue that forgets nothing it was not told to, children that die, and dice that decide what comes next."""

    def __init__(self, clock: Clock, seed: int) -> None:
        super().__init__(clock, MAX_ATTEMPTS="3", REQUEST_TTL_S="60")
        self.dice = random.Random(seed)
        self.stored: dict[Key, Received] = {}  # every message that is not acknowledged
        self.undelivered: list[Received] = []
        self.aboard: dict[int, dict[int, Task | Refuse]] = {}
        self.begun: set[int] = set()
        self.counted: Counter[str] = Counter()
        self.ended_as: Counter[str] = Counter()
        self.ids: set[str] = set()
        self.copies: dict[str, int] = {}
        self.kind = 0
        self.lossy = True

    def run(self, steps: int) -> None:
        acts = [
            self.publish_new, self.publish_new, self.deliver, self.deliver, self.deliver, self.redeliver, self.dispatch, self.dispatch,
            self.say, self.say, self.die, self.confirm_one, self.confirm_one, self.pass_time,
        ]  # fmt: skip
        for _ in range(steps):
            self.dice.choice(acts)()
            self.check()

    def finish(self) -> None:
        """Nothing new, nothing lost any more: everything must come to its end."""
        self.lossy = False
        for _ in range(5000):
            if not self.stored and not len(self.requests.ledger) and not self.unconfirmed:
                return
            for act in (self.deliver, self.dispatch, self.say, self.confirm_one):
                act()
            if not self.undelivered and not len(self.requests.ledger):
                self.redeliver()
            self.check()
        raise AssertionError(f"never ends: {self.stored}, {self.requests.ledger.waiting()}")

    def store(self, received: Received) -> None:
        self.stored[received.key] = received
        self.undelivered.append(received)

    def publish_new(self) -> None:
        roll, request_id = self.dice.random(), f"r{len(self.ids)}"
        if roll < 0.05:
            self.store(self.of_payload(b"no request at all"))
            return
        self.ids.add(request_id)
        stream = self.dice.random() < 0.5
        age = {PUBLISHED_MS: str(int((self.clock.now_s - 100) * 1000))} if roll < 0.15 else {}
        broken = b'{"request_id":"%s","endpoint":"http://h/res","data":1}' % request_id.encode() if roll > 0.95 else None
        copies = 2 if 0.15 < roll < 0.3 else 1
        self.copies[request_id] = copies
        for _ in range(copies):
            self.store(self.message(request_id, stream=stream, properties=age, payload=broken))

    def deliver(self) -> None:
        if self.undelivered:
            received = self.undelivered.pop(self.dice.randrange(len(self.undelivered)))
            if received.key in self.stored:
                self.requests.arrive(received)

    def redeliver(self) -> None:
        """As after a reconnect: anything that is not acknowledged comes again."""
        if self.stored:
            old = self.dice.choice(list(self.stored.values()))
            new = dataclasses.replace(old)
            self.stored[old.key] = new
            self.undelivered.append(new)

    def dispatch(self) -> None:
        entry = self.requests.next_for_child()
        if entry is None:
            return
        child = self.dice.randrange(1, 4) + 10 * self.kind
        message = self.requests.board(entry, child)
        everything = [m.request_id for tasks in self.aboard.values() for m in tasks.values()]
        assert message.request_id not in everything, "one request in two hands"
        assert not self.ended_as[message.request_id], "worked on after its end"
        self.aboard.setdefault(child, {})[message.number] = message

    def say(self) -> None:
        running = [(child, message) for child, tasks in self.aboard.items() for message in tasks.values()]
        if not running:
            return
        child, message = self.dice.choice(running)
        number, begun = message.number, message.number in self.begun
        if self.dice.random() < 0.3:
            if message.stream and isinstance(message, Task):
                self.requests.begun(number)
                self.begun.add(number)
            else:
                self.requests.computed(number)
            return
        ends = ["failed", "gone", "unknown", "undeliverable"] if begun or isinstance(message, Refuse) else [
            "answered", "failed", "retry", "retry", "throttle", "trouble", "gone", "unknown", "undeliverable"
        ]  # fmt: skip
        end = self.dice.choice(ends)
        del self.aboard[child][number]
        if end == "retry":
            self.counted[message.request_id] += 1
        if end not in ("retry", "throttle", "trouble"):
            self.ended_as[message.request_id] += 1
        self.requests.ended(Outcome(number, end, None if end == "answered" else ERROR))  # type: ignore[arg-type]

    def die(self) -> None:
        if not self.aboard or self.dice.random() < 0.7:
            return
        child = self.dice.choice(list(self.aboard))
        blame = self.dice.random() < 0.7
        for message in self.aboard.pop(child).values():
            if blame and isinstance(message, Task) and message.number not in self.begun:
                self.counted[message.request_id] += 1
        self.kind += 1
        self.requests.child_died(child, "signal", blame=blame)

    def confirm_one(self) -> None:
        if self.unconfirmed and (not self.lossy or self.dice.random() < 0.8):
            publish, confirmed = self.unconfirmed.pop(self.dice.randrange(len(self.unconfirmed)))
            if publish.topic == TOPIC:
                self.store(self.again(publish))
            self.confirmed.append(publish)
            confirmed()

    def pass_time(self) -> None:
        self.clock.now_s += self.dice.choice([0.1, 1, 5])

    def _acknowledge(self, received: Received) -> None:
        super()._acknowledge(received)
        assert self.stored.get(received.key) in (None, received), "acknowledged by an older delivery"
        if not self.lossy or self.dice.random() < 0.9:  # an acknowledgement may get lost
            self.stored.pop(received.key, None)

    def records(self) -> Counter[str]:
        return Counter(record_of(publish)["request_id"] for publish in self.confirmed if publish.topic == RECORDS)

    def check(self) -> None:
        """No request is lost: it is stored, or its end is on record."""
        stored = {id_of(received.payload) for received in self.stored.values()}
        assert self.ids <= stored | set(self.records())


def id_of(payload: bytes) -> str:
    try:
        return str(msgspec.json.decode(payload)["request_id"])
    except ValueError:
        return ""


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_each_request_ends_once(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    clock = Clock()
    monkeypatch.setattr(supervision.requests, "time", clock)
    world = World(clock, seed)
    world.run(250)
    world.finish()
    assert world.records() == Counter(world.ids)
    assert max(world.ended_as.values()) == 1
    assert all(count <= 3 * world.copies[name] for name, count in world.counted.items())
    letters = Counter(id_of(publish.payload) for publish in world.confirmed if publish.topic == DEAD)
    assert all(count == 1 for name, count in letters.items() if name)
    assert all(name in letters for name, count in world.counted.items() if count >= 3 and world.copies[name] == 1)
