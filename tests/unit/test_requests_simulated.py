"""Requests under whatever happens, with a model of Pulsar (batches, redelivery, lost acknowledgements, reconnects), of
children (deaths, late outcomes) and of whole nodes that die. Hypothesis throws the dice, and finds the shortest failure."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import supervision.requests
from ipc.messages import Outcome, Refuse, Task
from messaging.line import Key, Received
from messaging.publisher import Publish
from messaging.redelivery import PUBLISHED_MS
from supervision.journal import Journal
from tests.unit.request_fakes import DEAD, ERROR, RECORDS, TOPIC, Clock, Queue, record_of


class World(Queue):
    """A queue that forgets nothing it was not told to, children that die, and dice that decide what comes next."""

    def __init__(self, clock: Clock, dice: random.Random, *, mortal: bool) -> None:
        self.journal = Journal(None)
        super().__init__(clock, self.journal, MAX_ATTEMPTS="3", REQUEST_TTL_S="60")
        self.dice, self.mortal = dice, mortal
        self.stored: dict[Key, Received] = {}  # every message that is not acknowledged, with all others of its batch
        self.members_left: dict[tuple[int, int, int], set[Key]] = {}  # of a batch: those that are not acknowledged
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
            self.say, self.say, self.die, self.confirm_one, self.confirm_one, self.pass_time, self.publish_batch, self.give_back,
            self.reconnect, *([self.node_dies] if self.mortal else []),
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

    def store(self, *members: Received) -> None:
        """Of one entry: it goes once all of its members are acknowledged."""
        self.members_left[members[0].key[:3]] = {received.key for received in members}
        for received in members:
            self.stored[received.key] = received
            self.undelivered.append(received)

    def publish_batch(self) -> None:
        """Whole to one consumer, as Pulsar does."""
        if self.dice.random() < 0.3:
            plain = [self.new_request() for _ in range(self.dice.randrange(2, 5))]
            entry = plain[0].key[:3]
            self.store(*(replace(received, key=(*entry, n)) for n, received in enumerate(plain)))

    def new_request(self) -> Received:
        request_id = f"r{len(self.ids)}"
        self.ids.add(request_id)
        self.copies[request_id] = 1
        return self.message(request_id, stream=self.dice.random() < 0.5)

    def give_back(self) -> None:
        """As a node does that drains, or that can serve nobody for a while."""
        if self.dice.random() < 0.2:
            self.requests.give_back_waiting()

    def reconnect(self) -> None:
        """Everything that is not acknowledged comes again, of a batch also what was."""
        if self.dice.random() < 0.2:
            self.undelivered = []
            for key in list(self.stored):
                self.stored[key] = replace(self.stored[key])
                self.undelivered.append(self.stored[key])

    def node_dies(self) -> None:
        """Its memory is gone but for its journal; of what it had published some has arrived."""
        if self.dice.random() > 0.1:
            return
        for publish, _ in self.unconfirmed:
            if self.dice.random() < 0.5:
                self.arrived(publish)
        self.unconfirmed, self.aboard, before = [], {}, self.journal
        self.journal = Journal(None)
        self.journal.lost = before.lost | before._aboard
        self.requests = self.new_node(self.journal)
        self.undelivered = list(self.stored.values())

    def arrived(self, publish: Publish) -> None:
        if publish.topic == TOPIC:
            self.store(self.again(publish))
        self.confirmed.append(publish)

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
            new = replace(old)
            self.stored[old.key] = new
            self.undelivered.append(new)

    def dispatch(self) -> None:
        entry = self.next_for_child()
        if entry is None:
            return
        child = self.dice.randrange(1, 4) + 10 * self.kind
        message = self.requests.board(entry, child)
        everything = [m.request_id for tasks in self.aboard.values() for m in tasks.values()]
        assert message.request_id not in everything, "one request in two hands"
        assert self.mortal or not self.ended_as[message.request_id], "worked on after its end"
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
            "answered", "failed", "retry", "retry", "throttle", "trouble", "busy", "gone", "unknown", "undeliverable"
        ]  # fmt: skip
        end = self.dice.choice(ends)
        if self.ended_as[message.request_id]:  # by a node that died before it could say so: nobody waits any more
            end = "gone"
        del self.aboard[child][number]
        if end == "retry":
            self.counted[message.request_id] += 1
        if end not in ("retry", "throttle", "trouble", "busy") and not self.ended_as[message.request_id]:
            self.ended_as[message.request_id] += 1
        self.requests.ended(Outcome(number, end, None if end == "answered" else ERROR))  # type: ignore[arg-type]

    def die(self) -> None:
        if not self.aboard or self.dice.random() < 0.7:
            return
        child = self.dice.choice(list(self.aboard))
        blame = self.dice.random() < 0.7
        dead = self.aboard.pop(child)
        for message in dead.values():
            if blame and isinstance(message, Task) and message.number not in self.begun:
                self.counted[message.request_id] += 1
        self.kind += 1
        self.requests.child_died(child, "signal", blame=blame, others=self.dice.random() < 0.5)
        for number in dead:  # what it had said and nobody had read comes too late
            self.requests.ended(Outcome(number, "answered"))
            self.requests.begun(number)

    def confirm_one(self) -> None:
        if self.unconfirmed and (not self.lossy or self.dice.random() < 0.8):
            publish, confirmed = self.unconfirmed.pop(self.dice.randrange(len(self.unconfirmed)))
            self.arrived(publish)
            confirmed()

    def pass_time(self) -> None:
        self.clock.now_s += self.dice.choice([0.1, 1, 5])

    def _acknowledge(self, received: Received) -> None:
        super()._acknowledge(received)
        assert self.stored.get(received.key) in (None, received), "acknowledged by an older delivery"
        if not self.lossy or self.dice.random() < 0.9:  # an acknowledgement may get lost
            self.forget(received.key)

    def forget(self, key: Key) -> None:
        left = self.members_left.get(key[:3], set())
        left.discard(key)
        if not left:
            for stored in [each for each in self.stored if each[:3] == key[:3]]:
                del self.stored[stored]

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


@given(dice=st.randoms(use_true_random=False), mortal=st.booleans())
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_happens_each_request_ends_once(dice: random.Random, mortal: bool) -> None:
    with pytest.MonkeyPatch.context() as patched:
        clock = Clock()
        patched.setattr(supervision.requests, "time", clock)
        world = World(clock, dice, mortal=mortal)
        world.run(250)
        world.finish()
    check_the_end(world)


@pytest.mark.parametrize("seed", range(40))
def test_the_same_with_dice_of_a_seed(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    clock = Clock()
    monkeypatch.setattr(supervision.requests, "time", clock)
    world = World(clock, random.Random(seed), mortal=seed % 2 == 0)
    world.run(600)
    world.finish()
    check_the_end(world)


def check_the_end(world: World) -> None:
    assert set(world.records()) == world.ids == set(world.ended_as), "each has its end, and its record"
    assert max(world.ended_as.values(), default=1) == 1
    assert not world.journal._aboard, "nothing stays in the journal"
    if world.mortal:
        return  # a node's death may cost a request more: its memory of what has ended
    assert world.records() == Counter(world.ids)
    assert all(count <= 3 * world.copies[name] for name, count in world.counted.items())
    letters = Counter(id_of(publish.payload) for publish in world.confirmed if publish.topic == DEAD)
    assert all(count == 1 for name, count in letters.items() if name)
    assert all(name in letters for name, count in world.counted.items() if count >= 3 and world.copies[name] == 1)
