"""How many requests the node may send to its upstream now: what the headers tell, what refusals tell, what is set by hand.

Pure: the time is passed in, dice too. After a refusal nothing is sent until its wait is over, then one request alone, and
the pace opens up from a cut one.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import msgspec

from ipc.messages import Level
from limits.guessing import Guessed, Meter
from limits.pacer import Pacer
from limits.steering import Steered

UNLIMITED = 1 << 30
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # where the upstream does not say how long
MOST_DOUBLINGS = 10
MOST_TOKENS = 4_000_000.0  # of one request
JITTER = 0.1  # of a pause: nodes that were refused together do not come back together
SHORTEST_PATIENCE_S, LONGEST_PATIENCE_S = 0.25, 3.0  # with a probe: a refusal comes soon, a good answer may take minutes
STUCK_S = 30.0  # something is tried then, whatever was heard
RAMP_S = 0.2  # a node begins with one request, and twice as many each time
RAMP_DOUBLINGS = 10
SET_BURST_S = 0.25  # of a limit that is set by hand, so that it is kept over any second
FIRST_TOKENS = 500.0
REMEMBERED = 100_000


class _Sent(msgspec.Struct, frozen=True):
    """One that was dispatched. `before`: what had been spent of each bucket, itself included."""

    at_s: float
    tokens: float
    requests_spent: float
    tokens_spent: float


@dataclass(frozen=True)
class Bucket:
    """One limit: what is left of how much, by our estimate, and what this node allows itself a second."""

    what: str
    level: float
    holds: float
    pace: float


class Budget:
    """`rpm`, `tpm`: set by hand, 0: not. `ramps`: whether to begin with one request."""

    def __init__(self, dice: random.Random, *, rpm: int = 0, tpm: int = 0, ramps: bool = False) -> None:
        self._dice, self._ramps = dice, ramps
        self._set = {what: Pacer(n / 60, max(1.0, SET_BURST_S * n / 60), 0.0) for what, n in (("rpm", rpm), ("tpm", tpm)) if n}
        self._requests: Steered | None = None
        self._tokens: Steered | None = None
        self._guessed = Guessed()
        self._served = Meter()
        self._sent: dict[int, _Sent] = {}
        self._usual_tokens, self._correction = FIRST_TOKENS, 1.0
        self._first_s = self._last_s = -math.inf
        self._count = 0
        self._refused_at_s = self._paused_until_s = -math.inf
        self._refusals = 0  # in a row
        self._patience_s = LONGEST_PATIENCE_S
        self._probing, self._probe_at_s = False, math.inf

    @property
    def counts_tokens(self) -> bool:
        return "tpm" in self._set or self._tokens is not None

    # what may be sent

    def room(self, now_s: float) -> int:
        """How many requests of the usual size may be sent now."""
        if self._is_free(now_s):
            return UNLIMITED
        if self._wait_s(self._usual_tokens, now_s) > 0:
            return 0
        if self._probing:
            return 1
        tokens = self._usual_tokens
        rooms = [self._guessed.room(now_s), self._ramp_room(now_s)]
        rooms += [bucket.credit(now_s) / (tokens if what == "tpm" else 1) for what, bucket in self._set.items()]
        rooms += [bucket.room(now_s) / bucket.unit for bucket in (self._requests, self._tokens) if bucket]
        return max(1, int(min(UNLIMITED, *rooms)))

    def may_send(self, tokens: float, now_s: float) -> bool:
        """One of about so many tokens."""
        return self._wait_s(tokens * self._correction, now_s) <= 0

    def next_change_s(self, now_s: float) -> float:
        """Until there is room again; 0: there is."""
        return self._wait_s(self._usual_tokens, now_s)

    def paused_s(self, now_s: float) -> float:
        """How long the pause after a refusal still takes; 0: there is none."""
        return max(0.0, self._paused_until_s - now_s)

    @property
    def guessed_pace(self) -> float | None:
        """Requests a second, where refusals alone tell of a limit."""
        return self._guessed.pace

    def buckets(self, now_s: float) -> list[Bucket]:
        """What headers tell of."""
        known = {"requests": self._requests, "tokens": self._tokens}
        return [
            Bucket(what, max(0.0, bucket.level(now_s)), bucket.capacity, bucket.pace)
            for what, bucket in known.items() if bucket is not None and bucket.speaks
        ]  # fmt: skip

    def _is_free(self, now_s: float) -> bool:
        """Nothing is known of any limit."""
        known = self._ramps or self._probing or self._requests or self._tokens or self._set or self._guessed.is_active
        return not known and now_s >= self._paused_until_s

    def _wait_s(self, tokens: float, now_s: float) -> float:
        if self._is_free(now_s):
            return 0.0
        if now_s < self._paused_until_s:
            return self._paused_until_s - now_s
        if self._probing:
            return max(0.0, self._probe_at_s + self._patience_s - now_s) if self._probe_at_s <= now_s else 0.0
        told = [bucket.wait_s(tokens if what == "tpm" else 1.0, now_s) for what, bucket in self._set.items()]
        waits = [self._guessed.wait_s(now_s), 0.0 if self._ramp_room(now_s) >= 1 else RAMP_S / 4]
        if self._requests:
            waits.append(self._requests.wait_s(1.0, now_s))
        if self._tokens:
            waits.append(self._tokens.wait_s(tokens, now_s))
        return max(0.0, *told, min(max(waits), max(self._last_s, self._refused_at_s) + STUCK_S - now_s))

    def _ramp_room(self, now_s: float) -> float:
        if not self._ramps:
            return math.inf
        if not self._count:
            return 1.0
        doublings = (now_s - self._first_s) / RAMP_S
        self._ramps = doublings <= RAMP_DOUBLINGS
        return math.pow(2.0, doublings) - self._count if self._ramps else math.inf

    # what happened

    def dispatched(self, number: int, tokens: float, now_s: float) -> None:
        if not self._count:
            self._first_s = now_s
        self._count, self._last_s = self._count + 1, now_s
        if self._probing:
            self._probing, self._probe_at_s = self._probe_at_s > now_s or self._is_patient(now_s), min(self._probe_at_s, now_s)
        tokens *= self._correction
        for what, bucket in self._set.items():
            bucket.spend(tokens if what == "tpm" else 1.0, now_s)
        self._guessed.spend(now_s)
        requests_spent = self._requests.spend(1.0, now_s) if self._requests else 0.0
        tokens_spent = self._tokens.spend(tokens, now_s) if self._tokens else 0.0
        self._sent[number] = _Sent(now_s, tokens, requests_spent, tokens_spent)
        if len(self._sent) > REMEMBERED:  # of children that died
            del self._sent[next(iter(self._sent))]

    def told(self, number: int, requests: Level | None, tokens: Level | None, now_s: float) -> None:
        """The head of its answer came with levels."""
        sent = self._sent.get(number)
        if sent is None:
            return
        if requests is not None:
            self._requests = self._requests or Steered(1.0, now_s)
            spoke = self._requests.speaks
            self._requests.heard(requests, sent.at_s, sent.requests_spent, now_s)
            if self._requests.speaks and not spoke:  # known now, no need to guess
                self._ramps, self._guessed = False, Guessed()
        if tokens is not None:
            self._tokens = self._tokens or Steered(self._usual_tokens, now_s)
            self._tokens.unit = self._usual_tokens
            self._tokens.heard(tokens, sent.at_s, sent.tokens_spent, now_s)

    def ended(self, number: int, tokens: float | None, now_s: float) -> None:
        """With an answer of any kind but a refusal. `tokens`: what it took, where that is known."""
        sent = self._sent.pop(number, None)
        if sent is None:
            return
        if sent.at_s > self._refused_at_s:
            self._refusals = 0
            self._probing, self._probe_at_s = False, math.inf
        self._served.add(now_s)
        self._guessed.served(now_s)
        if tokens:
            self._correct(sent, tokens, now_s)

    def unsent(self, number: int, now_s: float) -> None:
        """It ended before the upstream had it, or had heard all of it: that says nothing of what the upstream wants."""
        sent = self._sent.pop(number, None)
        if sent is not None:
            self._take_back(sent, now_s)
            for what, bucket in self._set.items():
                bucket.give_back(sent.tokens if what == "tpm" else 1.0)

    def refused(self, number: int, wait_s: float | None, now_s: float, *, over_limit: bool = True) -> None:
        """By a 429 or the like; `wait_s` as the upstream asked. What was on its way together counts once.

        over_limit: the refusal is about how much was asked; otherwise the upstream is only away."""
        sent = self._sent.pop(number, None)
        if sent is not None:
            self._take_back(sent, now_s)
            self._patience_s = min(max(3 * (now_s - sent.at_s), SHORTEST_PATIENCE_S), LONGEST_PATIENCE_S)
        is_news = sent is None or sent.at_s > self._refused_at_s
        if is_news:
            self._refusals = min(self._refusals + 1, MOST_DOUBLINGS)
        wait_s = wait_s or min(FIRST_PAUSE_S * 2.0 ** (self._refusals - 1), LONGEST_PAUSE_S)
        self._paused_until_s = max(self._paused_until_s, now_s + wait_s * (1 + JITTER * self._dice.random()))
        if not is_news:
            return
        self._refused_at_s, self._probing, self._probe_at_s = now_s, True, math.inf
        if over_limit:
            self._cut(now_s)

    def _take_back(self, sent: _Sent, now_s: float) -> None:
        """It took nothing."""
        for bucket, spent, amount in ((self._requests, sent.requests_spent, 1.0), (self._tokens, sent.tokens_spent, sent.tokens)):
            if bucket is not None and spent:
                bucket.correct(-amount, now_s)

    def _cut(self, now_s: float) -> None:
        """What is known of the bucket goes on; where nothing is, a pace is guessed."""
        self._ramps = False
        low = [bucket for bucket in (self._requests, self._tokens) if bucket is not None and bucket.speaks and bucket.is_low(now_s)]
        for bucket in low:
            bucket.cut(now_s)
        if not any(bucket.is_timely for bucket in low):
            known = self._requests.refill.rate if self._requests else None
            self._guessed.refused(self._served.rate(now_s), now_s, known)

    def _is_patient(self, now_s: float) -> bool:
        """Whether the probe still counts as not answered."""
        return now_s < self._probe_at_s + self._patience_s

    def _correct(self, sent: _Sent, tokens: float, now_s: float) -> None:
        tokens = min(tokens, MOST_TOKENS)  # an absurd figure would close the node for days
        if "tpm" in self._set:
            self._set["tpm"].give_back(sent.tokens - tokens)
        if self._tokens is not None:
            self._tokens.correct(tokens - sent.tokens, now_s)
        if sent.tokens > 0:
            ratio = self._correction * tokens / sent.tokens
            self._correction += 0.05 * (min(max(ratio, 0.01), 10.0) - self._correction)
        self._usual_tokens += 0.05 * (tokens - self._usual_tokens)
