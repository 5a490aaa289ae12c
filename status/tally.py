"""What happened since the start, counted: plain figures, so that a request costs a few additions. metrics.py spells them out."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from errors import KNOWN_CODES
from reporting.usage import Ended

# Boundaries as OpenTelemetry's conventions for GenAI metrics ask for them.
DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
WAIT_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Histogram:
    """`counts[i]`: how many were at most `bounds[i]` and above the one before; the last are above all bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Tally:
    """One thread adds; others may read, and see a request's figures half added at worst."""

    def __init__(self) -> None:
        self.ends: Counter[tuple[str, str]] = Counter()  # (outcome, error); error is "" for answered
        self.dead_letters = 0
        self.given_back = 0
        self.deaths: Counter[tuple[str, str]] = Counter()  # (child, cause)
        self.input_tokens, self.output_tokens = Histogram(TOKENS), Histogram(TOKENS)
        self.upstream = {False: Histogram(DURATION_S), True: Histogram(DURATION_S)}  # by: did it end in an error
        self.request, self.first_token = Histogram(DURATION_S), Histogram(FIRST_TOKEN_S)
        self.per_token, self.queued = Histogram(PER_TOKEN_S), Histogram(WAIT_S)

    def add(self, ended: Ended) -> None:
        """A request's end: once for each request, so this has to be cheap (about 3 µs)."""
        outcome, received_ms = ended.outcome, ended.received_ms
        error = "" if ended.error is None else _bounded(ended.error)
        self.ends[outcome.end, error] += 1
        self.dead_letters += ended.dead_lettered
        self.queued.add(max(0.0, received_ms - ended.published_ms) / 1000)
        if outcome.answered_ms is not None:
            self.request.add(max(0.0, outcome.answered_ms - received_ms) / 1000)
        if outcome.tokens_source != "none":
            self.input_tokens.add(outcome.prompt_tokens)
            self.output_tokens.add(outcome.completion_tokens)
        first_ms, last_ms, sent_ms = outcome.first_token_ms, outcome.last_token_ms, outcome.upstream_sent_ms
        if first_ms is None or last_ms is None:
            return
        self.first_token.add(max(0.0, first_ms - received_ms) / 1000)
        if sent_ms is not None:
            self.upstream[bool(error)].add((last_ms - sent_ms) / 1000)
        if outcome.completion_tokens > 1 and last_ms > first_ms:  # a whole answer comes at once, and tells nothing of it
            self.per_token.add((last_ms - first_ms) / 1000 / (outcome.completion_tokens - 1))


def _bounded(error: dict[str, object]) -> str:
    """What upstreams may say is without bounds; a label must not be."""
    for name in (error.get("code"), error.get("type")):
        if isinstance(name, str) and name in KNOWN_CODES:
            return name
    return "other"
