"""The node's loop: wait, collect, take from the queue, dispatch; and, less often, bury and replace the dead, adjust the limit,
look after the upstream, tell how it is."""

from __future__ import annotations

import dataclasses
import random
import selectors
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from loguru import logger

from errors import ExitCode
from ipc.messages import Alive, Begun, Computed, FromChild, Outcome, Probed, Rates, Ready, Stop, Unusable
from ipc.pace import Pace
from ipc.spawned import ENDING_SIGNALS
from messaging.client import close_in_time, leave
from messaging.consumer import Consumer, Notice, ReceivingFailed
from messaging.handshake import QueueTrouble
from messaging.publisher import Publish, Publisher
from reporting.events import Events
from status.status import Status
from supervision.boot import Booted
from supervision.children import LONGEST_PAUSE_S, Child, Dead
from supervision.dispatch import Dispatcher
from supervision.journal import Journal
from supervision.ledger import Line
from supervision.limit import LocalLimit
from supervision.mailbox import Mailbox
from supervision.portrait import Portrait, kind_of_death
from supervision.requests import Pushback, Requests
from supervision.roles import BROKER, GATEWAY, backend_role
from supervision.trouble import QueueTroubles, Spell, UpstreamTrouble, as_reason
from supervision.upstream import Upstream

if TYPE_CHECKING:
    from config import Settings

TICK_S = 0.5
IDLE_TICK_S, WATCHED_TICK_S = 2.0, 1.0  # the second where the status page draws a point each second
CHORES_EACH_S = 0.1  # while requests come and go: what nothing waits for is done once for many of them
MOST_AT_ONCE = 16  # rounds of a turn: what takes no slot, as a message that comes again, could go on for ever
CONFIRMED_EACH_S = 0.02  # to wake for each confirmation would cost more than what it brings
CONFIRMED_WITHIN_S = 1.0  # later ones come once the queue is back, and may wait for a tick
MOST_UNCONFIRMED = 1000  # ends that the queue has not taken: more would only be answered twice after a crash
PROBE_EACH_S = 5.0  # while closed: is the oldest request past its time?
PROBE_DELAY_S = 1.0
CUT_WITHIN_S = 0.6  # after it too, for children to end streams by themselves
ENDING_WITHIN_S = 1.5  # after the drain's deadline, for refusals and confirmations on their way
CHILDREN_END_WITHIN_S = 5.0
GATEWAY_ENDS_WITHIN_S = 3.5  # past the drain's deadline, for the errors to those that still wait
QUEUE_CLOSES_WITHIN_S = 3.0
EVENTS_WITHIN_S, LAST_EVENT_WITHIN_S = 2.0, 10.0  # the second where the node ends for what the Event tells
END_WITHIN_S = 30.0  # after the drain's deadline, all of the above together: units and manifests leave that much time


class Signal(msgspec.Struct, frozen=True):
    number: int


class Confirmation(msgspec.Struct, frozen=True):
    """Pulsar confirmed a publish; `then` runs on the loop's thread."""

    then: Callable[[], None]


News = Signal | Confirmation | Notice


class Node:
    """Owns the Pulsar client, the ledger, the children and the exit code."""

    def __init__(self, booted: Booted) -> None:
        settings = booted.settings
        self._settings, self._has_broker, self._crew, self._selector = settings, booted.has_broker, booted.crew, booted.selector
        self._mailbox: Mailbox[News] = Mailbox()
        self._selector.register(self._mailbox.fd, selectors.EVENT_READ)
        dice = random.Random()
        self._consumer = Consumer(settings, self._mailbox.put, self._mailbox.wake)
        self._publisher = Publisher(self._consumer.client)
        journal = Journal(Path(settings.state_dir) if settings.state_dir else None, settings.request_ttl_s)
        self._status = Status(settings, self._mailbox.wake)
        self._requests = Requests(settings, self._publish, self._consumer.acknowledge, dice, journal, self._status)
        self._limit = LocalLimit(settings)
        self._upstream = Upstream(settings, dice)
        self._dispatcher = Dispatcher(self._crew, self._requests, self._upstream, self._most)
        self._portrait = Portrait(settings, self._crew, self._requests, self._limit, self._upstream, self._publisher)
        self._notifier = booted.notifier
        self._events = Events(settings)
        self._queue_troubles = QueueTroubles(self._events)
        self._retries = Spell("attempts fail and are made again: {message}", "no attempt fails any more; {count} did, over {lasted_s} s")
        checks_start = settings.node_type == "remote"
        self._trouble = UpstreamTrouble(settings, self._events, dice, time.monotonic(), checks_start=checks_start)
        self._next_probe_s = time.monotonic() + PROBE_EACH_S
        self._is_looping = False
        self._pace = Pace()
        self._talk_fds: set[int] = set()  # whose news are of requests alone
        self._chores_at_s = 0.0
        self._unconfirmed, self._published_at_s = 0, 0.0  # publishes, the last of them
        self._has_new, self._are_chores_urgent = True, True  # since they were done
        self._drain_until_s: float | None = None
        self._is_cut_off = False
        self._cut_off: set[int] = set()  # children that were told to end in the middle of their work
        self._exit_code = ExitCode.OK

    def hear_signals(self) -> None:
        """From now on they tell `run` to stop."""
        for number in ENDING_SIGNALS:
            signal.signal(number, lambda n, _: self._mailbox.put(Signal(n)))

    def run(self) -> int:
        """Until told to stop, or until it can serve nobody; the exit code."""
        logger.info("{} node for model {}, at most {} requests at once", *_introduction(self._settings))
        if not self._has_broker:  # else it starts once the broker is ready
            self._consumer.start()
        try:
            while not self._is_drained():
                ready = self._wait()
                self._read_mail()
                self._collect(ready)
                self._has_new = not self._are_chores_due(ready)
                if not self._has_new:
                    self._do_chores(ready)
                self._take_in()
            self._end()
        except SecondSignal as second:
            self._crew.kill_all()
            return 128 + second.number
        except Exception:  # a bug of ours: what is unacknowledged goes to others, and whoever started the node starts it anew
            logger.exception("the node failed")
            self._crew.kill_all()
            return ExitCode.CRASHED
        finally:
            self._requests.end_log.flush()
        return self._exit_code

    # the loop's steps

    def _wait(self) -> set[int]:
        """Until something happens, a tick at most, or until chores are due. Returns the descriptors that have something."""
        self._crew.flush()
        self._pace.in_flight = self._requests.ledger.in_hand()
        self._pace.rest()
        timeout_s = self._timeout_s()
        if (next_start_s := self._crew.next_start_s()) is not None:
            timeout_s = min(timeout_s, max(0.0, next_start_s - time.monotonic()))
            self._are_chores_urgent = self._are_chores_urgent or not timeout_s
        if (next_change_s := self._upstream.next_change_s()) > 0:
            timeout_s = min(timeout_s, next_change_s)
        return {key.fd for key, _ in self._selector.select(timeout_s)}

    def _timeout_s(self) -> float:
        now_s = time.monotonic()
        if self._has_new:
            timeout_s = max(0.0, self._chores_at_s + CHORES_EACH_S - now_s)
        elif self._is_idle():
            timeout_s = WATCHED_TICK_S if self._settings.status_port else IDLE_TICK_S
        else:
            timeout_s = TICK_S
        if self._unconfirmed and now_s < self._published_at_s + CONFIRMED_WITHIN_S:
            timeout_s = min(timeout_s, CONFIRMED_EACH_S)
        return timeout_s

    def _are_chores_due(self, ready: set[int]) -> bool:
        """They are at once where it is more than talk of requests that has come."""
        if self._are_chores_urgent or self._is_draining() or not ready <= self._talk_fds:
            return True
        return time.monotonic() >= self._chores_at_s + CHORES_EACH_S

    def _do_chores(self, ready: set[int]) -> None:
        self._chores_at_s, self._are_chores_urgent = time.monotonic(), False
        self._crew.start_missing()
        self._bury(ready)
        self._crew.appoint()
        self._probe()
        self._limit.adjust(self._crew.children(), self._requests.ledger.in_hand())
        self._retire()
        self._tell()
        self._talk_fds = {self._mailbox.fd, *(child.channel.read_fd for child in self._crew.children() if child.can_be_told)}

    def _read_mail(self) -> None:
        for news in self._mailbox.take():
            if isinstance(news, Confirmation):
                self._unconfirmed -= 1
                news.then()
            else:
                self._are_chores_urgent = True
                self._read_notice(news)

    def _read_notice(self, news: Signal | Notice) -> None:
        if isinstance(news, Signal):
            self._on_signal(news.number)
        elif isinstance(news, QueueTrouble):
            self._on_queue_trouble(news)
        elif isinstance(news, ReceivingFailed):
            raise RuntimeError(f"nothing can be received any more: {news.message}")
        else:
            self._queue_troubles.over(time.monotonic(), f"subscribed at {self._settings.pulsar_url}")

    def _collect(self, ready: set[int]) -> None:
        for child, message in self._crew.collect(ready):
            self._hear(child, message)

    def _bury(self, ready: set[int]) -> None:
        for dead in self._dead(ready):
            for message in dead.unread:
                self._hear(dead.child, message)
            expected = dead.child.retires or (self._is_draining() and (self._is_cut_off or not dead.child.role.capacity))
            self._log_death(dead, expected)
            # Whose lease ran out had to end because its supervisor stood still: no request's doing.
            blame = not expected and dead.exit_code != ExitCode.SUPERVISOR_GONE
            others = not self._is_draining() and any(child.is_usable for child in self._crew.backends())
            self._requests.child_died(dead.child.number, dead.cause, blame=blame, others=others)
        self._say_if_looping()

    def _dead(self, ready: set[int]) -> list[Dead]:
        """All that have died by now: what one leaves is not to go to another that is dead already, and be counted again."""
        found = self._crew.bury(ready)
        while more := self._crew.bury() if found else []:
            found += more
        return found

    def _log_death(self, dead: Dead, expected: bool) -> None:
        aboard = len(self._requests.ledger.aboard(dead.child.number))
        words = f"; {aboard} requests were aboard" if dead.child.role.capacity else ""
        level = "INFO" if expected else "DEBUG" if self._is_looping else "WARNING"
        logger.log(level, "{} ended: {}{}", dead.child.role.name, dead.cause, words)
        kind = kind_of_death(dead.child.killed_because, dead.exit_code)
        self._status.died(dead.child.role.name, dead.pid, dead.cause, kind, expected=expected, aboard=aboard)
        self._dispatcher.died(dead.child)
        if self._crew.is_in_crash_loop() and not self._is_looping:
            self._is_looping = True
            words = "the backends end again and again: nothing is received until one stays. Tried again each {:g} s at most. The last: {}"
            logger.error(words, LONGEST_PAUSE_S, dead.cause)
            self._events.warn("GeneralError", words.format(LONGEST_PAUSE_S, dead.cause))

    def _say_if_looping(self) -> None:
        if self._is_looping and self._crew.capacity():
            self._is_looping = False
            logger.info("a backend works again")
            self._events.note("GeneralError", "A backend works again.")

    def _probe(self) -> None:
        """Look whether the upstream's trouble is still there, by a child that could use it."""
        able = [child for child in self._crew.backends() if child.is_usable and not self._is_draining()]
        now_s = time.monotonic()
        probe = self._trouble.probe_due(now_s, [child.number for child in able]) if able else None
        if probe is not None:
            child = random.choice(able)
            self._trouble.asked(child.number, now_s)
            self._crew.send(child, probe)
        self._queue_troubles.look(now_s)
        self._retries.look(now_s)
        self._upstream.look()

    def _take_in(self) -> None:
        """What has come from the queue, and what there is room for at once."""
        for _ in range(MOST_AT_ONCE):
            self._receive()
            self._dispatcher.run()
            if not self._ask_for_more():
                return
        self._mailbox.wake()  # for the rest, behind what others have said meanwhile

    def _receive(self) -> None:
        for received in self._consumer.take():
            self._requests.arrive(received)
        if not self._requests.ledger.has_waiting():
            return
        if self._is_draining():
            given_back = self._requests.give_back_waiting()
            if given_back:
                logger.info("gave back {} requests that had not begun", given_back)
        elif self._trouble.error is not None and not self._holds():
            self._requests.refuse_waiting(self._trouble.error)
        elif self._is_closed() and self._requests.give_back_waiting(PROBE_DELAY_S):
            self._next_probe_s = time.monotonic() + PROBE_EACH_S  # the oldest has time left; another node may serve it

    def _retire(self) -> None:
        """Who is to be replaced ends once nothing of it is open."""
        for child in self._crew.backends():
            if child.retires and child.can_be_told and not self._requests.ledger.aboard(child.number):
                self._crew.send(child, Stop())

    def _ask_for_more(self) -> bool:
        """Whether there is more already."""
        if self._is_draining():
            return self._consumer.allow(0)
        if self._is_closed():
            return self._consumer.allow(int(time.monotonic() >= self._next_probe_s))
        self._next_probe_s = time.monotonic() + PROBE_EACH_S
        return self._consumer.allow(self._room())

    def _tell(self) -> None:
        """The log, who ended; probes, pages and systemd, where there are any, how it is."""
        self._requests.end_log.flush()
        why_not_ready = self._why_not_ready()
        self._status.tell(why_not_ready, self._portrait)
        self._notifier.tell(why_not_ready, self._work)

    # what the steps decide by

    def _work(self) -> str:
        return f"{self._requests.ledger.in_hand()} in flight, limit {self._most()}"

    def _room(self) -> int:
        """How many more requests can be started now."""
        if self._publisher.unconfirmed() > MOST_UNCONFIRMED:
            return 0
        ledger = self._requests.ledger
        return max(0, min(self._most() - ledger.in_hand(), self._upstream.room() - ledger.count_in(Line.TASK)))

    def _most(self) -> int:
        """How many requests may be in flight now, whatever the upstream's budget says."""
        return min(self._settings.max_process_num, self._crew.capacity(), self._limit.value)

    def _is_idle(self) -> bool:
        """Nothing has a deadline that half a second matters to, and no model's machine is to be looked at."""
        return not (len(self._requests.ledger) or self._is_draining() or self._limit.is_looking)

    def _is_closed(self) -> bool:
        """Nothing can be started for now; only what has expired is still received, to be refused in time."""
        in_trouble = self._trouble.is_starting or (self._trouble.error is not None and self._holds())
        return in_trouble or self._upstream.is_paused() or not self._crew.capacity()

    def _why_not_ready(self) -> str:
        """"" while the node takes requests."""
        if self._is_draining():
            return "draining"
        if self._queue_troubles.word:
            return self._queue_troubles.word
        if not self._crew.capacity():
            return "no backend is ready"
        if self._trouble.word:
            return self._trouble.word
        return "receiving pauses, as the upstream asked for it" if self._is_closed() else ""

    def _is_draining(self) -> bool:
        return self._drain_until_s is not None

    def _is_drained(self) -> bool:
        """Nothing in hand, or no time left. Past its deadline the drain ends the children of what still runs."""
        if self._drain_until_s is None:
            return False
        now_s = time.monotonic()
        if not len(self._requests.ledger) and self._consumer.has_stopped():
            return True
        if now_s > self._drain_until_s and not self._is_cut_off:
            self._is_cut_off = True
            self._cut_off_running()
        if now_s > self._drain_until_s + CUT_WITHIN_S:
            self._kill_cut_off()
        return now_s > self._drain_until_s + ENDING_WITHIN_S

    def _hear(self, child: Child, message: FromChild) -> None:
        if isinstance(message, Outcome):
            self._upstream.ended(message)
            pushback = self._requests.ended(message)
            if pushback is not None:
                self._are_chores_urgent = True
                self._on_pushback(pushback)
            elif message.end == "retry":
                self._retries.meet(str((message.error or {}).get("message")), time.monotonic())
            elif message.end == "answered":
                child.has_served = True
            child.may_die = self._requests.ledger.is_quarantined(child.number)
        elif isinstance(message, Begun):
            self._requests.begun(message.number)
        elif isinstance(message, Computed):
            self._requests.computed(message.number)
        elif isinstance(message, Rates):
            self._upstream.told(message)
        elif not isinstance(message, Alive):
            self._are_chores_urgent = True
            self._hear_news(child, message)

    def _hear_news(self, child: Child, message: FromChild) -> None:
        """Of the child itself, or of the upstream."""
        if isinstance(message, Probed):
            self._trouble.heard(message, time.monotonic())
            self._stop_if_hopeless()
        elif isinstance(message, Ready):
            room = f", {message.slots} slots" if message.slots else ""
            logger.info("{} is ready after {:.1f} s{}", child.role.name, time.monotonic() - child.born_s, room)
            if child.role.name == BROKER:
                self._consumer.start()
        elif isinstance(message, Unusable):
            self._on_unusable(child, message)

    def _on_unusable(self, child: Child, message: Unusable) -> None:
        logger.error("{}: {}", child.role.name, message.message)
        if message.permanent:
            self._events.warn("ConfigurationError", message.message)
            self._stop_unless_kept_up()

    def _on_pushback(self, pushback: Pushback) -> None:
        if pushback.reason is None:
            return  # it wants less: the upstream's budget has heard of it
        if pushback.confirm:
            self._trouble.doubt(time.monotonic())
        else:
            self._trouble.meet(as_reason(pushback.reason), pushback.error, time.monotonic(), pushback.wait_s)
            self._stop_if_hopeless()

    def _stop_if_hopeless(self) -> None:
        """Money may come by itself; a key or an address has to be changed by somebody."""
        if self._trouble.is_hopeless and self._holds():
            self._stop_unless_kept_up()

    def _stop_unless_kept_up(self) -> None:
        """In a cluster an end would only loop: there the node stays, not ready, and looks again now and then."""
        if not self._settings.kubernetes_service_host:
            self._stop_for_good()

    def _holds(self) -> bool:
        return self._settings.on_trouble == "hold"

    def _on_queue_trouble(self, trouble: QueueTrouble) -> None:
        self._queue_troubles.meet(trouble.message, trouble.refused, time.monotonic())
        if trouble.refused:
            self._stop_unless_kept_up()

    # the end

    def _on_signal(self, number: int) -> None:
        if self._is_draining():
            raise SecondSignal(number)
        logger.info("{}: receiving stops; what runs may take {:g} s", signal.Signals(number).name, self._settings.drain_timeout_s)
        self._drain()

    def _stop_for_good(self) -> None:
        """Somebody has to change something first: another start would end the same."""
        if not self._is_draining():
            self._exit_code = ExitCode.CONFIGURATION
            self._drain()

    def _drain(self) -> None:
        """The gateway takes nothing new from now on either, and lives until what it waits for has come."""
        self._drain_until_s = time.monotonic() + self._settings.drain_timeout_s
        self._notifier.stopping(self._settings.drain_timeout_s + END_WITHIN_S)
        self._consumer.stop_receiving()
        self._crew.dismiss(GATEWAY)

    def _cut_off_running(self) -> None:
        """Have the children end what still runs: a stream that has begun with an error, which is best said from there; all
        else is given back once they are confirmed dead. A child without a model, which is there in no time, ends the
        streams of who did not manage to."""
        ledger = self._requests.ledger
        self._crew.substitute_backends(backend_role(dataclasses.replace(self._settings, node_type="demo"), 0, 1))
        for child in self._crew.backends():
            if ledger.aboard(child.number):
                logger.warning("{} still works on {} requests and is ended", child.role.name, len(ledger.aboard(child.number)))
                self._crew.send(child, Stop())
                self._cut_off.add(child.number)

    def _kill_cut_off(self) -> None:
        for child in self._crew.backends():
            if child.number in self._cut_off and child.can_be_told:
                self._crew.kill(child, "drained")

    def _end(self) -> None:
        """Backends first, as nothing is left for them; the gateway after them, as their answers went through it; the
        queue then, as closing it gives to others whatever is still unacknowledged; a broker of our own last."""
        for number in ENDING_SIGNALS:
            signal.signal(number, lambda n, _: self._end_at_once(n))
        assert self._drain_until_s is not None
        self._crew.stop(self._crew.backends(), CHILDREN_END_WITHIN_S)
        requesters_wait_s = max(0.0, self._drain_until_s - time.monotonic()) + GATEWAY_ENDS_WITHIN_S
        self._crew.stop(self._crew.in_role(GATEWAY), requesters_wait_s)
        self._publisher.close()
        close_in_time(self._consumer.close, QUEUE_CLOSES_WITHIN_S)
        self._crew.stop(self._crew.in_role(BROKER), CHILDREN_END_WITHIN_S)
        self._events.close(LAST_EVENT_WITHIN_S if self._exit_code is ExitCode.CONFIGURATION else EVENTS_WITHIN_S)
        if len(self._requests.ledger):
            logger.warning("{} requests were not confirmed by the queue; it will give them to others", len(self._requests.ledger))

    def _end_at_once(self, number: int) -> None:
        self._crew.kill_all()
        leave(128 + number)

    def _publish(self, publish: Publish, confirmed: Callable[[], None]) -> None:
        self._unconfirmed += 1
        self._published_at_s = time.monotonic()
        self._publisher.publish(publish, lambda: self._mailbox.leave(Confirmation(confirmed)))


class SecondSignal(Exception):
    """Somebody does not want to wait for the drain."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _introduction(settings: Settings) -> tuple[str, str, int]:
    return settings.node_type, settings.model_name, settings.max_process_num
