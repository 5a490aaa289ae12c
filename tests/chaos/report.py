"""Lines for people: progress, and the verdict."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.chaos.checker import LOST, MOST_EXAMPLES, RECORDED_TWICE, TWICE, UNRECORDED, WRONG, Findings
from tests.chaos.ledger import Ledger
from tests.real.upstream.tally import Spent

MUST_BE_NONE = (LOST, TWICE, WRONG, UNRECORDED, RECORDED_TWICE)


@dataclass
class Result:
    seed: int
    minutes: float
    findings: Findings
    orphans: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    node_faults: list[str] = field(default_factory=list)
    answers_a_second: float = 0.0
    events: Counter[str] = field(default_factory=Counter)
    spent: Spent = field(default_factory=Spent)

    @property
    def passed(self) -> bool:
        return not (any(self.findings.bad.values()) or self.orphans or self.stuck or self.node_faults)


def verdict(result: Result) -> str:
    """The one line."""
    found = result.findings
    counts = [f"{len(found.bad.get(kind, []))} {kind}" for kind in MUST_BE_NONE]
    counts += [f"{len(lines)} {kind}" for kind, lines in found.bad.items() if kind not in MUST_BE_NONE]
    counts += [f"{len(result.orphans)} orphans", f"{len(result.stuck)} slots stuck", f"{len(result.node_faults)} faults of processes"]
    broken = sum(count for kind, count in found.finals.items() if kind.endswith("broken"))
    errors = sum(count for kind, count in found.finals.items() if kind.endswith("error"))
    known = [f"{errors} ended with an error", f"{broken} broken by their gateway's death"]
    known += [f"{len(lines)} {kind}" for kind, lines in found.known.items()]
    asked = sum(found.finals.values())
    word = "PASS" if result.passed else "FAIL"
    return f"seed {result.seed}, {result.minutes:.1f} min, {asked:,} requests: {', '.join(counts)}; {', '.join(known)}. {word}"


def details(result: Result) -> str:
    """What the verdict rests on."""
    found = result.findings
    lines = [
        f"events: {_counts(result.events)}",
        f"answers a second: {result.answers_a_second:.1f}; usage records: {found.records:,}; no gateway there: {found.unreachable}",
        f"distinct record_ids: {len(found.record_ids):,}, of {sum(found.finals.values()):,} requests",
        _tokens(result),
        f"ends: {_counts(found.finals)}",
        f"records' outcomes: {_counts(found.outcomes)}",
        f"attempts, by the record: {', '.join(f'{n}: {count:,}' for n, count in sorted(found.attempts.items()))}",
        *(f"  {count:6,} × {error}" for error, count in found.errors.most_common(12)),
    ]
    for kind, examples in [*found.bad.items(), *found.known.items()]:
        lines += [f"{kind}: {len(examples)}", *(f"  {example}" for example in examples[:MOST_EXAMPLES])]
    for kind, examples in (("orphans", result.orphans), ("slots stuck", result.stuck), ("faults of processes", result.node_faults)):
        lines += [f"{kind}: {len(examples)}", *(f"  {example}" for example in examples[:MOST_EXAMPLES])] if examples else []
    return "\n".join(lines)


def _tokens(result: Result) -> str:
    """Killed attempts have spent tokens that no record can name."""
    spent, recorded = result.spent, result.findings.tokens
    lost = spent.counted + spent.broken_off - recorded["reported"] - recorded["estimated"]
    upstreams = f"the upstreams spent {spent.counted + spent.broken_off:,}, {spent.broken_off:,} of them in streams that broke off"
    records = f"the records say {recorded['reported']:,} reported and {recorded['estimated']:,} estimated"
    return f"tokens: {upstreams}; {records}: {lost:,} were spent by attempts that no record tells of"


def progress(ledger: Ledger, at_s: float, up: str) -> str:
    finals = Counter(asked.final for asked in list(ledger.asked))
    replayed = sum(len(asked.attempts) > 1 for asked in list(ledger.asked))
    counts = ", ".join(f"{count} {final}" for final, count in sorted(finals.items(), key=str) if final)
    return f"{at_s:6.0f} s: {len(ledger.asked):,} asked, {finals[None]} open, {counts}, {replayed} replayed | {up}"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counter.most_common())
