"""The node's children: spawned, listened to, killed, replaced. The only place that starts or ends one."""

from __future__ import annotations

import random
import selectors
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any

import multiprocess
import psutil
from loguru import logger

from errors import ExitCode, killed_by
from ipc.channel import ChannelBroken, ChannelClosed, SupervisorEnd
from ipc.messages import Alive, FromChild, Lease, Ready, Stop, ToChild, Unusable
from ipc.spawned import signals_held

LEASE_EACH_S = 2.0
STUCK_AFTER_S = 10.0
SILENT_AFTER_S = 10.0  # a child that is only starved of the interpreter's lock answers sooner
BOOT_WITHIN_S = 60.0
LONGEST_DOUBLING = 10
HEALTHY_AFTER_S = 30.0
LOOP_FROM_FAILURES = 3
WEIGH_EACH_S = 5.0
LONGEST_PAUSE_S = 30.0
REAP_WITHIN_S = 5.0
LINGER_S = 6.0  # more than a backend takes to end its model server


@dataclass(frozen=True)
class Role:
    """What a child is for. `main(*arguments, reading, writing)` is what it runs; `capacity`: requests at once, 0 for
    one that serves instead (the gateway, the broker); `boot_s`: how long it may take until it is ready."""

    name: str
    main: Callable[..., None]
    arguments: tuple[Any, ...]
    capacity: int
    boot_s: float = BOOT_WITHIN_S


@dataclass
class Child:
    """One process and its channel. `number` is never used again, so nothing of a dead child can be another's.

    at_work: gets requests; another that is ready is a spare. has_served: an answer of its own proves that it works.
    retires: it gets nothing any more, and ends once it has nothing left. may_die: it runs what is likely to kill it."""

    number: int
    role: Role
    process: Any
    channel: SupervisorEnd
    born_s: float
    ready: Ready | None = None
    alive: Alive | None = None
    last_words: Unusable | None = None
    killed_because: str | None = None
    closed_since_s: float | None = None
    unanswered_since_s: float | None = None
    at_work: bool = False
    has_served: bool = False
    retires: bool = False
    may_die: bool = False

    @property
    def capacity(self) -> int:
        """Requests it may hold at once: none before it is at work, then its share, or what its model server runs."""
        if self.ready is None or not self.at_work or not self.is_usable:
            return 0
        return min(self.role.capacity, self.ready.slots or self.role.capacity)

    @property
    def is_usable(self) -> bool:
        """Ready for requests, at work or spare."""
        return self.ready is not None and self.last_words is None and self.can_be_told and not self.retires

    @property
    def can_be_told(self) -> bool:
        """What is sent to it may still reach it."""
        return self.killed_because is None and self.closed_since_s is None

    @property
    def has_spoken(self) -> bool:
        """It is through with its imports; a model may still be loading."""
        return self.ready is not None or self.alive is not None

    @property
    def listens(self) -> bool:
        """Ready or not: a refusal needs no model."""
        return self.can_be_told and self.has_spoken

    @property
    def pids(self) -> list[int]:
        return [self.process.pid, *(self.ready.pids if self.ready else [])]


@dataclass
class _Place:
    """Where one child at a time stands."""

    role: Role
    child: Child | None = None
    failures: int = 0
    start_at_s: float = 0.0
    dismissed: bool = False


@dataclass
class Dead:
    """A child that was reaped, and all that it had said and nobody had read."""

    child: Child
    pid: int
    cause: str
    exit_code: int
    unread: list[FromChild] = field(default_factory=list)


class Crew:
    """`at_work`: how many backends get requests; the others of `roles` are spares, ready to take a dead one's place.
    `memory_limit_bytes`: of one child, without its model server; None: no limit."""

    def __init__(
        self, roles: list[Role], selector: selectors.BaseSelector, dice: random.Random, *,
        at_work: int | None = None, memory_limit_bytes: int | None = None,
    ) -> None:  # fmt: skip
        self._places = [_Place(role) for role in roles]
        self._at_work = sum(bool(role.capacity) for role in roles) if at_work is None else at_work
        self._memory_limit_bytes, self._weighed_s = memory_limit_bytes, 0.0
        self._selector, self._dice = selector, dice
        self._context = multiprocess.get_context("spawn")  # never fork: the Pulsar client does not survive it
        self._children: list[Child] = []
        self._backends: list[Child] = []
        self._watched: set[int] = set()  # descriptors that the selector wakes for when they can be written to
        self._last_number = 0
        self._capacity: int | None = None
        self._leased_s = 0.0

    def children(self) -> list[Child]:
        return self._children

    def _recount(self) -> None:
        """Whenever a place got a child, or lost it: they are asked for many times each turn."""
        self._capacity = None
        self._children = [place.child for place in self._places if place.child is not None]
        self._backends = [child for child in self._children if child.role.capacity]

    def in_role(self, role: str) -> list[Child]:
        return [child for child in self.children() if child.role.name == role]

    def backends(self) -> list[Child]:
        return self._backends

    def capacity(self) -> int:
        """Of all at work. Asked for many times each turn, and known until something is heard or done."""
        if self._capacity is None:
            self._capacity = sum(child.capacity for child in self.backends())
        return self._capacity

    def spares(self) -> list[Child]:
        return [child for child in self.backends() if child.is_usable and not child.at_work]

    def is_in_crash_loop(self) -> bool:
        """No backend is ready, and none of them stays alive for long."""
        places = [place for place in self._places if place.role.capacity and not place.dismissed]
        is_ready = any(place.child is not None and place.child.is_usable for place in places)
        return bool(places) and not is_ready and all(place.failures >= LOOP_FROM_FAILURES for place in places)

    def appoint(self) -> None:
        """Put ready spares to work where somebody is missing: no request waits for a start."""
        self._capacity = None
        missing = self._at_work - sum(child.at_work and child.is_usable for child in self.backends())
        for spare in self.spares()[: max(0, missing)]:
            spare.at_work = True

    def start_first(self, alone_s: float) -> None:
        """All but the backends behind the first, which follow once it is ready or that time is over: on few cores all at once
        are all late."""
        for place in [place for place in self._places if place.role.capacity][1:]:
            place.start_at_s = time.monotonic() + alone_s
        self.start_missing()

    def start_missing(self) -> None:
        """Fill the empty places whose pause is over."""
        for place in self._places:
            if place.child is None and not place.dismissed and time.monotonic() >= place.start_at_s:
                try:
                    place.child = self._spawn(place.role)
                    self._recount()
                except OSError as error:  # no process, descriptor or memory to be had at the moment
                    logger.error("{} cannot be started: {}", place.role.name, error)
                    self._set_pause(place, lived_s=0.0)

    def next_start_s(self) -> float | None:
        """When the next pause ends (monotonic)."""
        return min((place.start_at_s for place in self._places if place.child is None and not place.dismissed), default=None)

    def _spawn(self, role: Role) -> Child:
        to_child_read, to_child_write = self._context.Pipe(duplex=False)
        from_child_read, from_child_write = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=role.main, args=(*role.arguments, to_child_read, from_child_write), name=role.name, daemon=False
        )
        with signals_held():
            process.start()
        to_child_read.close()
        from_child_write.close()
        self._last_number += 1
        child = Child(self._last_number, role, process, SupervisorEnd(from_child_read, to_child_write), time.monotonic())
        self._selector.register(child.channel.read_fd, selectors.EVENT_READ)
        self._selector.register(process.sentinel, selectors.EVENT_READ)
        logger.debug("{} started as process {}", role.name, process.pid)
        return child

    def dismiss(self, role: str) -> None:
        """Ask it to end in its own time; nobody follows it."""
        for place in self._places:
            if place.role.name == role:
                place.dismissed = True
                if place.child is not None:
                    self.send(place.child, Stop())

    def substitute_backends(self, role: Role) -> None:
        """No backend that dies is followed by another one from now on, but for a single child of this role."""
        for place in self._places:
            place.dismissed = place.dismissed or bool(place.role.capacity)
        self._places.append(_Place(role))
        self._at_work += 1

    def send(self, child: Child, message: ToChild) -> None:
        """It goes out with the next `flush`. A child that is dead by then is reported dead by `bury`, with all that it was sent
        aboard."""
        try:
            child.channel.put(message)
        except ChannelBroken as broken:
            self.kill(child, str(broken))

    def collect(self, ready: Container[int] | None = None) -> list[tuple[Child, FromChild]]:
        """What the children have said. Also renews leases.

        ready: the descriptors that the selector found readable; None: nobody has looked."""
        self._capacity = None
        said: list[tuple[Child, FromChild]] = []
        renew = time.monotonic() - self._leased_s > LEASE_EACH_S
        self._leased_s = time.monotonic() if renew else self._leased_s
        for child in self.children():
            if child.closed_since_s is not None:
                self._kill_if_it_lingers(child)
                continue
            may_speak = ready is None or child.channel.read_fd in ready
            messages, broken = child.channel.receive() if may_speak else ([], None)
            said += [(child, message) for message in self._noted(child, messages)]
            if broken is not None:
                self._on_broken(child, broken)
            if renew and broken is None:
                self._renew_lease(child)
        self._weigh()
        return said

    def _renew_lease(self, child: Child) -> None:
        """Its answer proves that it listens: a stopped or hung process would hold its requests for ever. One that starts has
        a deadline of its own, as on a busy machine its imports alone may take long."""
        now_s = time.monotonic()
        if child.has_spoken:
            child.unanswered_since_s = child.unanswered_since_s or now_s
            if now_s - child.unanswered_since_s > SILENT_AFTER_S:
                self.kill(child, f"it said nothing for {SILENT_AFTER_S:g} s")
        if child.ready is None and now_s - child.born_s > child.role.boot_s:
            self.kill(child, f"it was not ready after {child.role.boot_s:g} s")
        self.send(child, Lease())

    def _weigh(self) -> None:
        """Memory that grows without bound is a leak, of ours or of a library: who has it is replaced, at leisure."""
        limit_bytes = self._memory_limit_bytes
        if limit_bytes is None or time.monotonic() - self._weighed_s < WEIGH_EACH_S:
            return
        self._weighed_s = time.monotonic()
        for child in self.backends():
            if child.is_usable and (used_bytes := _resident_bytes(child.process.pid)) > limit_bytes:
                words = "{} uses {:,} MB, over CHILD_MEMORY_LIMIT_MB={:,}: it ends what it has and is replaced"
                logger.warning(words, child.role.name, used_bytes >> 20, limit_bytes >> 20)
                child.retires, child.at_work = True, False

    def _on_broken(self, child: Child, broken: ChannelBroken) -> None:
        """A closed end is how a death shows first, and the exit code will tell more; anything else is a reason to kill."""
        child.closed_since_s = time.monotonic()
        self._selector.unregister(child.channel.read_fd)
        if not isinstance(broken, ChannelClosed):
            self.kill(child, str(broken))

    def _kill_if_it_lingers(self, child: Child) -> None:
        assert child.closed_since_s is not None
        if time.monotonic() - child.closed_since_s > LINGER_S:
            self.kill(child, f"it closed its channel and did not end within {LINGER_S:g} s")

    def _noted(self, child: Child, messages: list[FromChild]) -> list[FromChild]:
        for message in messages:
            if isinstance(message, Alive):
                self._on_alive(child, message)
            elif isinstance(message, Ready):
                child.ready = message
                if child.role.capacity:
                    self._start_the_others()
            elif isinstance(message, Unusable):
                child.last_words = message
        return messages

    def _start_the_others(self) -> None:
        for place in self._places:
            if place.child is None and not place.failures:
                place.start_at_s = 0.0

    def _on_alive(self, child: Child, alive: Alive) -> None:
        child.unanswered_since_s, child.alive = None, alive
        if alive.overdue:
            self.kill(child, f"it hangs: {len(alive.overdue)} of its requests show no progress")

    def _push(self, child: Child) -> None:
        try:
            child.channel.flush()
        except ChannelClosed:
            return  # the next turn reads the same from its reading end
        except ChannelBroken as broken:
            self.kill(child, str(broken))
        if child.channel.stuck_for_s() > STUCK_AFTER_S:
            self.kill(child, f"it took nothing from its channel for {STUCK_AFTER_S:g} s")

    def flush(self) -> None:
        """Give each child all that it was sent since, in one piece: what wakes a process costs more than what it is told. Kills
        who takes nothing; has the selector wake for channels that are full, and for no others."""
        is_full = False
        for child in self._children:
            if child.channel.has_unsent and child.closed_since_s is None:
                self._push(child)
                is_full = is_full or child.channel.has_unsent
        if not (is_full or self._watched):
            return
        wanted = {child.channel.write_fd for child in self._children if child.channel.has_unsent and child.can_be_told}
        for number in self._watched - wanted:
            self._selector.unregister(number)
        for number in wanted - self._watched:
            self._selector.register(number, selectors.EVENT_WRITE)
        self._watched = wanted

    def kill(self, child: Child, because: str) -> None:
        """SIGKILL; the death is reported by `bury`."""
        self._capacity = None
        if child.killed_because is None:
            child.killed_because = because
            child.process.kill()

    def bury(self, ready: Container[int] | None = None) -> list[Dead]:
        """Reap who has died, read what it left unread, and set its place's pause: none for a first death. `ready`: as above."""
        dead: list[Dead] = []
        for place in self._places:
            child = place.child
            if child is not None and self._may_be_dead(child, ready) and child.process.exitcode is not None:
                dead.append(self._reap(child))
                place.child = None
                self._recount()
                if not (child.may_die or child.retires):
                    self._set_pause(place, lived_s=time.monotonic() - child.born_s, has_served=child.has_served)
        return dead

    @staticmethod
    def _may_be_dead(child: Child, ready: Container[int] | None) -> bool:
        """Worth a system call."""
        return ready is None or child.process.sentinel in ready or not child.can_be_told

    def _reap(self, child: Child) -> Dead:
        child.process.join(REAP_WITHIN_S)
        messages, _ = child.channel.receive(to_end=True)
        messages = self._noted(child, messages)
        watched = self._selector.get_map()
        for fd in (child.channel.read_fd, child.channel.write_fd, child.process.sentinel):
            if fd in watched:
                self._selector.unregister(fd)
        self._watched.discard(child.channel.write_fd)
        child.channel.close()
        exit_code, pid = child.process.exitcode, child.process.pid
        child.process.close()
        return Dead(child, pid, child.killed_because or how_it_ended(exit_code), exit_code, messages)

    def _set_pause(self, place: _Place, lived_s: float, *, has_served: bool = False) -> None:
        """None for who lived long, and for a first death; who has served counts as a first: it did not fail to start."""
        place.failures = 0 if lived_s > HEALTHY_AFTER_S else 1 if has_served else place.failures + 1
        if place.failures > 1:
            longest_s = min(0.25 * 2.0 ** min(place.failures, LONGEST_DOUBLING), LONGEST_PAUSE_S)
            place.start_at_s = time.monotonic() + longest_s * (0.5 + self._dice.random() / 2)

    def stop(self, children: list[Child], within_s: float) -> None:
        """Ask them to end, wait, kill who does not."""
        for child in children:
            self.send(child, Stop())
        self.flush()
        give_up_at_s = time.monotonic() + within_s
        for child in children:
            child.process.join(max(0.0, give_up_at_s - time.monotonic()))
            if child.process.exitcode is None:
                logger.warning("{} did not end within {:g} s and is killed", child.role.name, within_s)
                child.process.kill()
                child.process.join(REAP_WITHIN_S)

    def kill_all(self) -> None:
        for child in self.children():
            child.process.kill()
        for child in self.children():
            child.process.join(REAP_WITHIN_S)


def _resident_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:  # it is just ending
        return 0


def how_it_ended(exitcode: int) -> str:
    """A process's exit code in words, with the likely cause."""
    if exitcode < 0:
        return killed_by(-exitcode)
    named = {ExitCode.CRASHED: "a Python error, printed above", ExitCode.SUPERVISOR_GONE: "its lease ran out"}
    meaning = named.get(ExitCode(exitcode)) if exitcode in set(ExitCode) else None
    return f"exit code {exitcode}" + (f" ({meaning})" if meaning else "")
