"""The events of a schedule, done to the players; and everything healed again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import psutil

from tests.chaos.ledger import TOKENS, Incident, Ledger
from tests.chaos.players import Part, Player, parts
from tests.chaos.schedule import BROKER, Event
from tests.real.brokers import Broker
from tests.real.upstream import Upstream

SLOW = f"mock?latency=3s&gap=200ms&tokens={TOKENS}"
HANG_UPS = 3
NOBODY = "nobody"
HEIRS_END_WITHIN_S = 35.0  # a child may be stopped for 15 s, its lease takes 10, its model server's guard 8
CLIENTS_RETURN_WITHIN_S = 15.0


class Storm:
    """`perform` and `tick` return at once. The broker's return takes long: it has a thread, which has to outlive the broker."""

    def __init__(self, run: str, ledger: Ledger, nodes: list[Player], gateways: list[Player], broker: Broker, upstream: Upstream) -> None:
        self._run, self._ledger, self._nodes, self._gateways = run, ledger, nodes, gateways
        self._broker, self._upstream = broker, upstream
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="broker")
        self._returning: Future[None] | None = None
        self._frozen: list[tuple[float, psutil.Process]] = []
        self._slow_until_s: float | None = None
        self._heirs: list[tuple[float, list[Part]]] = []  # by when they are to be gone
        self._actions: dict[str, Callable[[Event], str]] = {
            "kill backend": lambda event: self._kill_part("backend", event),
            "kill model server": lambda event: self._kill_part("model server", event),
            "kill guard": lambda event: self._kill_part("guard", event),
            "stop backend": self._stop_backend,
            "stop supervisor": lambda event: self._to_player(nodes, event, lambda player: player.freeze(event.duration_s)),
            "kill supervisor": lambda event: self._to_player(nodes, event, lambda player: self._kill_supervisor(player, event)),
            "drain supervisor": lambda event: self._to_player(nodes, event, lambda player: player.drain(event.duration_s)),
            "kill gateway": lambda event: self._to_player(gateways, event, lambda player: player.kill(event.duration_s)),
            "slow upstream": self._slow_down,
            "hang up": self._hang_up,
            BROKER: self._kill_broker,
        }

    def perform(self, event: Event) -> str:
        """To whom it was done, for the log."""
        return self._actions[event.kind](event)

    def tick(self) -> None:
        now_s = time.monotonic()
        for player in [*self._nodes, *self._gateways]:
            player.tick()
        for entry in [entry for entry in self._frozen if now_s >= entry[0]]:
            self._thaw(entry)
        self._watch_heirs(now_s)
        if self._slow_until_s is not None and now_s >= self._slow_until_s:
            self._be_fast()
        if self._returning is not None and self._returning.done():
            self._returning.result()
            self._returning = None

    @property
    def broker_is_up(self) -> bool:
        return self._returning is None

    def heal(self, within_s: float = 300.0) -> None:
        """All stopped ones go on, all dead ones are started; returns once the broker and every player run."""
        self._be_fast()
        for entry in list(self._frozen):
            self._thaw(entry)
        deadline_s = time.monotonic() + within_s
        players = [*self._nodes, *self._gateways]
        while self._returning is not None or not all(player.settled for player in players):
            if time.monotonic() > deadline_s:
                raise TimeoutError("the system could not be started again")
            self.tick()
            time.sleep(0.1)
            for player in players:
                player.heal()
        for player in players:
            player.heal()

    def close(self) -> None:
        for entry in list(self._frozen):
            self._thaw(entry)
        self._keeper.shutdown(wait=True)

    # what is done

    def _kill_part(self, role: str, event: Event) -> str:
        found = [part for part in parts(self._run) if part.role == role]
        if not found:
            return NOBODY
        part = found[event.index % len(found)]
        self._ledger.incident("child", part.node)
        with contextlib.suppress(psutil.NoSuchProcess):
            part.process.kill()
        return f"{part.node}: {part.process.pid}"

    def _stop_backend(self, event: Event) -> str:
        found = [part for part in parts(self._run) if part.role == "backend"]
        if not found:
            return NOBODY
        part = found[event.index % len(found)]
        self._ledger.incident("child", part.node, event.duration_s)
        with contextlib.suppress(psutil.NoSuchProcess):
            part.process.suspend()
            self._frozen.append((time.monotonic() + event.duration_s, part.process))
        return f"{part.node}: {part.process.pid}"

    def _thaw(self, entry: tuple[float, psutil.Process]) -> None:
        self._frozen.remove(entry)
        with contextlib.suppress(psutil.NoSuchProcess):
            entry[1].resume()

    def _to_player(self, players: list[Player], event: Event, do: Callable[[Player], bool]) -> str:
        """To the one that the index means or, where nothing can be done to it now, to the next."""
        start = event.index % len(players)
        for player in [*players[start:], *players[:start]]:
            if do(player):
                return player.name
        return NOBODY

    def _kill_supervisor(self, player: Player, event: Event) -> bool:
        family = [part for part in parts(self._run) if part.node == player.name]
        killed = player.kill(event.duration_s)
        if killed:
            self._heirs.append((time.monotonic() + HEIRS_END_WITHIN_S, family))
        return killed

    def _watch_heirs(self, now_s: float) -> None:
        """What a dead supervisor left behind has to end by itself."""
        for due in [due for due in self._heirs if now_s >= due[0]]:
            self._heirs.remove(due)
            for part in due[1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    if part.process.status() == psutil.STATUS_ZOMBIE:
                        continue
                    self._ledger.node_faults.append(f"{part.node}: {part.role} {part.process.pid} outlived its supervisor")

    def _slow_down(self, event: Event) -> str:
        self._upstream.everybody(SLOW)
        self._slow_until_s = time.monotonic() + event.duration_s
        return "A's upstream"

    def _be_fast(self) -> None:
        self._slow_until_s = None
        self._upstream.everybody("")

    def _hang_up(self, event: Event) -> str:
        begun = [asked for asked in self._ledger.open() if asked.way == "gateway" and asked.stream and asked.attempts]
        start = event.index % max(1, len(begun))
        leaving = begun[start : start + HANG_UPS]
        for asked in leaving:
            if (hang_up := asked.hang_up) is not None:
                self._ledger.end(asked, "hung up")
                hang_up()
        return " ".join(asked.tag for asked in leaving) or NOBODY

    def _kill_broker(self, event: Event) -> str:
        if self._returning is not None:
            return NOBODY
        incident = self._ledger.incident("kill", "broker")
        incident.until_s = float("inf")
        self._broker.kill()
        self._returning = self._keeper.submit(self._return_broker, event.duration_s, incident)
        return "the broker"

    def _return_broker(self, pause_s: float, incident: Incident) -> None:
        time.sleep(pause_s)
        self._broker.start()
        incident.until_s = time.monotonic() + CLIENTS_RETURN_WITHIN_S
