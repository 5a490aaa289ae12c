"""The budget in virtual time, against a token bucket of 600 requests a minute that holds 10: alone, as three nodes that
know nothing of each other, with every kind of header and with none."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.messages import Level
from limits.budget import LONGEST_PAUSE_S, STUCK_S, UNLIMITED, Budget
from limits.headers import levels
from limits.pacer import LONGEST_DEBT_S, Pacer
from limits.steering import Refill

RPM, BURST = 600, 10
AT_ONCE = 128
Headers = Callable[["Bucket"], Level | None]


@dataclass
class Bucket:
    """The upstream's."""

    per_s: float
    holds: float
    level: float = math.inf
    at_s: float = 0.0

    def take(self, amount: float, now_s: float) -> bool:
        self.level, self.at_s = min(self.holds, self.level + self.per_s * (now_s - self.at_s)), now_s
        if self.level < amount:
            return False
        self.level -= amount
        return True

    @property
    def reset_s(self) -> float:
        return (self.holds - self.level) / self.per_s


@dataclass
class Upstream:
    """Answers after a latency, refuses after a millisecond or two; a token for each request where it has a token bucket."""

    requests: Bucket
    headers: Headers
    latency_s: Callable[[random.Random], float]
    tells_wait: bool
    tokens: Bucket | None = None
    let_in: int = 0
    refused: int = 0


@dataclass
class World:
    """Nodes with an endless queue, and their upstream; events in the order of their time."""

    upstream: Upstream
    budgets: list[Budget]
    tokens: float = 0.0
    dice: random.Random = field(default_factory=lambda: random.Random(5))
    events: list[tuple[float, int, Callable[[float], None]]] = field(default_factory=list)
    in_flight: dict[int, int] = field(default_factory=dict)
    count: int = 0
    per_node: dict[int, int] = field(default_factory=dict)

    def run(self, seconds: float) -> None:
        for node in range(len(self.budgets)):
            self.at(self.dice.random() / 2, lambda now_s, node=node: self.turn(node, now_s))  # type: ignore[misc]
        while self.events and self.events[0][0] < seconds:
            now_s, _, happens = heapq.heappop(self.events)
            happens(now_s)

    def at(self, at_s: float, happens: Callable[[float], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (at_s, self.count, happens))

    def turn(self, node: int, now_s: float) -> None:
        """Of a node's loop: send what may be sent, wait for the next change."""
        budget = self.budgets[node]
        while self.in_flight.get(node, 0) < AT_ONCE and budget.room(now_s) > 0 and budget.may_send(self.tokens, now_s):
            self.send(node, now_s)
        wait_s = min(0.5, max(0.002, budget.next_change_s(now_s)))
        self.at(now_s + wait_s + 0.002 * self.dice.random(), lambda later_s: self.turn(node, later_s))

    def send(self, node: int, now_s: float) -> None:
        self.count += 1
        number = self.count
        self.budgets[node].dispatched(number, self.tokens, now_s)
        self.in_flight[node] = self.in_flight.get(node, 0) + 1
        self.at(now_s + self.on_the_way_s(), lambda later_s: self.arrive(node, number, later_s))

    def on_the_way_s(self) -> float:
        return 0.002 + 0.004 * self.dice.random()

    def arrive(self, node: int, number: int, now_s: float) -> None:
        upstream, tokens = self.upstream, self.upstream.tokens
        good = upstream.requests.take(1.0, now_s) and (tokens is None or tokens.take(self.tokens, now_s))
        told = upstream.headers(upstream.requests), upstream.headers(tokens) if tokens else None
        upstream.let_in, upstream.refused = upstream.let_in + good, upstream.refused + (not good)
        self.per_node[node] = self.per_node.get(node, 0) + good
        back_s = now_s + self.on_the_way_s()
        if good:
            self.at(back_s + upstream.latency_s(self.dice), lambda later_s: self.answered(node, number, told, later_s))
        else:
            wait_s = (1 - upstream.requests.level) / upstream.requests.per_s if upstream.tells_wait else None
            self.at(back_s, lambda later_s: self.refused(node, number, told, wait_s, later_s))

    def answered(self, node: int, number: int, told: tuple[Level | None, Level | None], now_s: float) -> None:
        self.in_flight[node] -= 1
        self.budgets[node].told(number, *told, now_s)
        self.budgets[node].ended(number, self.tokens or None, now_s)

    def refused(self, node: int, number: int, told: tuple[Level | None, Level | None], wait_s: float | None, now_s: float) -> None:
        self.in_flight[node] -= 1
        self.budgets[node].told(number, *told, now_s)
        self.budgets[node].refused(number, wait_s, now_s)


def as_openai(bucket: Bucket) -> Level:
    return Level(math.floor(bucket.level), 60 * bucket.per_s, round(bucket.reset_s, 3))


def limit_is_the_bucket(bucket: Bucket) -> Level:
    return Level(math.floor(bucket.level), bucket.holds, round(bucket.reset_s, 3))


def as_azure(bucket: Bucket) -> Level:
    return Level(math.floor(bucket.level), 60 * bucket.per_s, math.floor(bucket.reset_s) + 1.0)


def no_reset(bucket: Bucket) -> Level:
    return Level(math.floor(bucket.level), 60 * bucket.per_s)


def always_plenty(bucket: Bucket) -> Level:
    """Of another bucket than the one that refuses."""
    return Level(59 * bucket.per_s, 60 * bucket.per_s, 1.0)


def nothing(_: Bucket) -> None:
    return None


def world(nodes: int, headers: Headers, *, latency_s: float = 0.2, rpm: int = 0, tells_wait: bool = True) -> World:
    budgets = [Budget(random.Random(n), rpm=rpm, ramps=True) for n in range(nodes)]
    return World(Upstream(Bucket(RPM / 60, BURST), headers, lambda dice: latency_s * (0.75 + 0.5 * dice.random()), tells_wait), budgets)


def share_of_limit(ran: World, minutes: float) -> float:
    return ran.upstream.let_in / (RPM * minutes)


def share_refused(ran: World) -> float:
    return ran.upstream.refused / (ran.upstream.let_in + ran.upstream.refused)


KINDS = [as_openai, limit_is_the_bucket, as_azure, no_reset]


@pytest.mark.parametrize(("nodes", "headers"), [*((n, kind) for n in (1, 2, 3) for kind in KINDS), (6, as_openai)])
def test_nodes_together_use_the_limit_up_and_are_hardly_refused(nodes: int, headers: Headers) -> None:
    ran = world(nodes, headers)
    ran.run(300)
    assert share_of_limit(ran, 5) >= 0.97
    assert share_refused(ran) <= 0.01


@pytest.mark.parametrize("latency_s", [0.05, 1.0])
@pytest.mark.parametrize("nodes", [1, 3])
def test_other_latencies(nodes: int, latency_s: float) -> None:
    ran = world(nodes, as_openai, latency_s=latency_s)
    ran.run(300)
    assert share_of_limit(ran, 5) >= 0.95
    assert share_refused(ran) <= 0.01


@pytest.mark.parametrize("nodes", [1, 3])
def test_answers_that_take_much_longer_than_the_bucket_holds_out(nodes: int) -> None:
    ran = world(nodes, as_openai, latency_s=10.0)
    ran.run(300)
    assert share_of_limit(ran, 5) >= 0.8
    assert share_refused(ran) <= 0.03


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("headers", [nothing, always_plenty])
@pytest.mark.parametrize("tells_wait", [True, False])
def test_a_limit_that_only_refusals_tell_of(nodes: int, headers: Headers, tells_wait: bool) -> None:
    ran = world(nodes, headers, tells_wait=tells_wait)
    ran.run(300)
    assert share_of_limit(ran, 5) >= 0.9
    assert share_refused(ran) <= 0.025


def test_each_of_three_nodes_has_its_share() -> None:
    ran = world(3, as_openai)
    ran.run(300)
    assert min(ran.per_node.values()) > 0.75 * max(ran.per_node.values())


def test_who_comes_late_gets_a_share_from_who_had_it_all() -> None:
    ran = world(2, as_openai)
    early = ran.budgets.pop()
    ran.budgets.insert(0, early)
    ran.at(60.0, lambda now_s: ran.turn(1, now_s))
    ran.at(0.0, lambda now_s: ran.turn(0, now_s))
    while ran.events and ran.events[0][0] < 120:
        now_s, _, happens = heapq.heappop(ran.events)
        happens(now_s)
        if now_s < 90:
            ran.per_node.clear()
    assert ran.per_node[1] > 0.6 * ran.per_node[0]


@pytest.mark.parametrize("nodes", [1, 3])
def test_a_limit_set_by_hand_is_kept_without_a_refusal(nodes: int) -> None:
    ran = world(nodes, nothing, rpm=RPM // nodes)
    ran.run(300)
    assert share_of_limit(ran, 5) >= 0.97
    assert ran.upstream.refused == 0


@pytest.mark.parametrize("nodes", [1, 3])
def test_tokens_are_the_narrower_limit(nodes: int) -> None:
    """1,000 tokens a request, 300,000 a minute: 300 requests, of the 600 that the other bucket would grant."""
    ran = world(nodes, as_openai)
    ran.tokens, ran.upstream.tokens = 1000.0, Bucket(5000.0, 20_000.0)
    ran.run(300)
    assert ran.upstream.let_in >= 0.97 * 1500
    assert share_refused(ran) <= 0.02


def test_tokens_set_by_hand_are_corrected_by_what_was_used() -> None:
    """Each is thought to take 500 and takes 50: of 60,000 a minute 1,200 requests can be had."""
    budget, sent = Budget(random.Random(1), tpm=60_000), 0
    for step in range(3000):
        now_s = step / 10
        if budget.may_send(500.0, now_s):
            budget.dispatched(step, 500.0, now_s)
            budget.ended(step, 50.0, now_s + 0.05)
            sent += 1
    assert sent >= 2500


def test_nothing_known_nothing_limited() -> None:
    budget = Budget(random.Random(1))
    assert budget.room(0.0) == UNLIMITED
    for number in range(1000):
        budget.dispatched(number, 0.0, 0.0)
    assert budget.room(0.0) == UNLIMITED and budget.next_change_s(0.0) == 0


def test_a_start_doubles() -> None:
    budget = Budget(random.Random(1), ramps=True)
    sent: list[float] = []
    for tenth in range(40):
        while len(sent) < 10_000 and budget.room(tenth / 10) > 0:
            budget.dispatched(len(sent), 0.0, tenth / 10)
            sent.append(tenth / 10)
    assert sum(at_s < 0.1 for at_s in sent) == 1
    assert 4 <= sum(at_s < 0.5 for at_s in sent) <= 8
    assert len(sent) == 10_000


def test_after_a_refusal_a_pause_then_one_probe_then_more() -> None:
    budget = Budget(random.Random(1))
    for number in range(20):
        budget.dispatched(number, 0.0, 0.0)
    budget.ended(0, None, 0.1)
    for number in range(1, 20):
        budget.refused(number, 2.0, 0.1)
    assert 2.0 <= budget.paused_s(0.1) <= 2.2
    assert budget.room(1.0) == 0 and budget.paused_s(1.0) > 1
    assert budget.room(2.5) == 1
    budget.dispatched(20, 0.0, 2.5)
    assert budget.room(2.6) == 0, "until the probe is answered"
    budget.ended(20, None, 2.7)
    assert budget.room(2.7) <= 2, "no flood"
    assert 0 < budget.room(60.0) <= 2


def test_refusals_of_what_was_on_its_way_together_count_once() -> None:
    budget = Budget(random.Random(1))
    for number in range(20):
        budget.dispatched(number, 0.0, 0.0)
    for number in range(20):
        budget.refused(number, None, 0.1)
    assert 1.0 <= budget.paused_s(0.1) <= 1.1


def test_pauses_grow_where_the_upstream_does_not_say_how_long() -> None:
    budget, now_s, pauses = Budget(random.Random(1)), 0.0, []
    for number in range(50):
        budget.dispatched(number, 0.0, now_s)
        budget.refused(number, None, now_s + 0.1)
        pauses.append(budget.paused_s(now_s + 0.1))
        now_s += 0.1 + pauses[-1]
    assert 1 <= pauses[0] <= 1.1 and 2 <= pauses[1] <= 2.2
    assert pauses[-1] <= 1.1 * LONGEST_PAUSE_S


def test_a_probe_that_is_lost_with_its_child_is_followed_by_another() -> None:
    budget = Budget(random.Random(1))
    budget.dispatched(1, 0.0, 0.0)
    budget.refused(1, 1.0, 0.1)
    budget.dispatched(2, 0.0, 2.0)
    assert budget.room(2.1) == 0
    assert budget.room(10.0) > 0


def test_an_upstream_that_is_away_does_not_change_the_pace() -> None:
    budget = Budget(random.Random(1))
    budget.dispatched(1, 0.0, 0.0)
    budget.refused(1, None, 0.1, over_limit=False)
    budget.dispatched(2, 0.0, 2.0)
    budget.ended(2, None, 2.1)
    assert budget.room(2.1) == UNLIMITED


def test_a_limit_that_was_set_is_kept_to_however_slow_it_is() -> None:
    budget, sent, now_s = Budget(random.Random(1), rpm=1), 0, 0.0
    while now_s < 600:
        if budget.room(now_s) and budget.may_send(100.0, now_s):
            budget.dispatched(sent, 100.0, now_s)
            budget.ended(sent, None, now_s)
            sent += 1
        now_s += 0.5
    assert 9 <= sent <= 11


def test_an_absurd_figure_does_not_close_the_node_for_long() -> None:
    budget = Budget(random.Random(1), tpm=100_000)
    budget.dispatched(1, 100.0, 0.0)
    budget.ended(1, 1e15, 1.0)
    assert budget.next_change_s(1.0) <= 2 * LONGEST_DEBT_S


def test_what_never_reached_the_upstream_ends_no_probe() -> None:
    budget = Budget(random.Random(1))
    budget.dispatched(1, 0.0, 0.0)
    budget.refused(1, 1.0, 0.1)
    budget.dispatched(2, 0.0, 2.0)
    budget.unsent(2, 2.1)
    assert budget.room(2.1) == 0 and budget.room(10.0) == 1


number = st.floats(allow_nan=False, allow_infinity=False, min_value=0, max_value=1e12)
level = st.none() | st.builds(Level, number, st.none() | number, st.none() | number)
event = st.tuples(st.sampled_from(["told", "ended", "refused"]), level, level, st.none() | st.floats(0.001, 120), st.floats(0, 30))


@given(st.lists(event, max_size=60), st.integers(0, 10_000), st.integers(0, 10_000), st.booleans())
def test_whatever_is_heard_room_comes_back(events: list[tuple[str, Level | None, Level | None, float | None, float]],
                                           rpm: int, tpm: int, ramps: bool) -> None:  # fmt: skip
    budget, now_s, asked_until_s = Budget(random.Random(1), rpm=rpm, tpm=tpm, ramps=ramps), 0.0, 0.0
    for n, (what, requests, tokens, wait_s, later_s) in enumerate(events):
        budget.dispatched(n, 100.0, now_s)
        now_s += later_s
        budget.told(n, requests, tokens, now_s)
        if what == "ended":
            budget.ended(n, wait_s, now_s)
        elif what == "refused":
            budget.refused(n, wait_s, now_s)
            asked_until_s = max(asked_until_s, now_s + 1.1 * (wait_s or LONGEST_PAUSE_S))
        assert 0 <= budget.room(now_s) <= UNLIMITED
        assert math.isfinite(budget.next_change_s(now_s))
    honest_s = LONGEST_DEBT_S + 120 if rpm or tpm else STUCK_S  # what somebody set is kept to
    later_s = max(now_s + honest_s, asked_until_s) + 1
    assert budget.room(later_s) > 0 and budget.may_send(1e9, later_s)


@given(st.dictionaries(
    st.sampled_from([f"x-ratelimit-{part}-{what}" for part in ("limit", "remaining", "reset") for what in ("requests", "tokens")]),
    st.text("0123456789.smh-e ", max_size=12) | st.sampled_from(["-1", "0", "59", "1s", "6m0s", "12ms", "nan", "inf", "1e9", "9" * 12]),
))  # fmt: skip
def test_odd_headers_are_not_said(headers: dict[str, str]) -> None:
    for found in levels(headers):
        assert found is None or (0 <= found.remaining < 1e12 and (found.reset_s is None or found.reset_s >= 0))


def test_headers_as_they_come() -> None:
    assert levels({"content-type": "application/json"}) == (None, None)
    openai = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": "1s",
              "x-ratelimit-limit-tokens": "150000", "x-ratelimit-remaining-tokens": "149984",
              "x-ratelimit-reset-tokens": "6m0s"}  # fmt: skip
    assert levels(openai) == (Level(59, 60, 1.0), Level(149984, 150000, 360.0))
    azure = {"x-ratelimit-remaining-requests": "9", "x-ratelimit-reset-requests": "1", "x-ratelimit-remaining-tokens": "-1"}
    assert levels(azure) == (Level(9, None, 1.0), None)


@pytest.mark.parametrize(("limit", "per_s", "holds"), [(600, 10, 10), (10, 10, 10), (60, 1, 60), (200, 200 / 86400, 200)])
def test_how_fast_a_bucket_fills_is_seen_by_its_resets(limit: float, per_s: float, holds: float) -> None:
    refill = Refill()
    for remaining in (9, 8, 6, 7, 4, 5, 3, 6):
        refill.heard(Level(remaining, limit, round((holds - remaining) / per_s, 3)))
    assert refill.rate == pytest.approx(per_s, rel=0.02)


def test_a_pacer_takes_what_is_bigger_than_its_burst_and_pays_it_back() -> None:
    pacer = Pacer(10.0, 5.0, 0.0)
    assert pacer.wait_s(100.0, 0.0) == 0
    pacer.spend(100.0, 0.0)
    assert pacer.wait_s(1.0, 0.0) == pytest.approx(9.6)
    assert pacer.wait_s(1.0, 9.7) == 0
