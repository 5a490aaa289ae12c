"""What happened since the start, counted: plain figures, in batches, so that a request costs little. metrics.py spells them out."""

from __future__ import annotations

from bisect import bisect_right
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

    def add(self, values: list[float]) -> None:
        """Sorts them: so many at once cost a fraction of one by one."""
        values.sort()
        done = 0
        for place, bound in enumerate(self.bounds):
            up_to = bisect_right(values, bound, done)
            self.counts[place] += up_to - done
            done = up_to
        self.counts[-1] += len(values) - done
        self.sum += sum(values)


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

    def add(self, batch: list[Ended]) -> None:
        """Requests that ended, each once."""
        self.ends.update((e.outcome.end, "" if e.error is None else _bounded(e.error)) for e in batch)
        self.dead_letters += sum(e.dead_lettered for e in batch)
        self.queued.add([_s(e.published_ms, e.received_ms) for e in batch])
        self.request.add([_s(e.received_ms, e.outcome.answered_ms) for e in batch if e.outcome.answered_ms is not None])
        counted = [e.outcome for e in batch if e.outcome.tokens_source != "none"]
        self.input_tokens.add([float(o.prompt_tokens) for o in counted])
        self.output_tokens.add([float(o.completion_tokens) for o in counted])
        spoke = [e for e in batch if e.outcome.first_token_ms is not None]
        self.first_token.add([_s(e.received_ms, e.outcome.first_token_ms) for e in spoke])
        for is_error, histogram in self.upstream.items():
            outcomes = [e.outcome for e in spoke if (e.error is not None) is is_error]
            histogram.add([_s(o.upstream_sent_ms, o.last_token_ms) for o in outcomes])
        streamed = [e.outcome for e in spoke if e.outcome.completion_tokens > 1 and e.outcome.last_token_ms != e.outcome.first_token_ms]
        self.per_token.add([_s(o.first_token_ms, o.last_token_ms) / (o.completion_tokens - 1) for o in streamed])


def _s(start_ms: float | None, end_ms: float | None) -> float:
    """Seconds between; never below 0, as a publisher's clock may be ahead of ours."""
    took_s = ((end_ms or 0.0) - (start_ms or 0.0)) / 1000
    return took_s if took_s > 0 else 0.0


def _bounded(error: dict[str, object]) -> str:
    """What upstreams may say is without bounds; a label must not be."""
    for name in (error.get("code"), error.get("type")):
        if isinstance(name, str) and name in KNOWN_CODES:
            return name
    return "other"
