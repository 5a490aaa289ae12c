"""What was promised against what was seen. Pure: from requests, incidents and records to findings."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.ledger import Asked, Attempt, Incident

CLOCKS_S = 0.5  # from a kill until what it kills is quiet
NODE_DEATHS = {"kill", "stop", "end"}
MOST_EXAMPLES = 12

Records = dict[str, list[dict[str, Any]]]  # by the tag that the requester sent as its User-Agent


@dataclass
class Findings:
    """`bad`: what breaks the promise, by its kind; `known`: what docs say remains possible; both with examples."""

    bad: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    known: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    finals: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    records: int = 0
    record_ids: set[str] = field(default_factory=set)
    tokens: Counter[str] = field(default_factory=Counter)  # by tokens_source, of each record_id once
    unreachable: int = 0  # asked of a gateway that was not there: no requests


LOST = "lost"
TWICE = "answered twice"
WRONG = "answered wrongly"
UNCAUSED = "errors while nothing was killed"
UNRECORDED = "without usage record"
RECORDED_TWICE = "with more than one record_id"


def check(asked: Iterable[Asked], incidents: list[Incident], records: Records) -> Findings:
    found = Findings()
    for one in asked:
        if one.final == "unreachable":
            found.unreachable += 1
            continue
        found.finals[f"{one.way} {one.final or 'open'}"] += 1
        if one.error is not None:
            found.errors[f"{one.final}: {one.error.get('type')} {one.error.get('code')}: {str(one.error.get('message'))[:60]}"] += 1
        _check_answer(one, incidents, found)
        _check_records(one, records.get(one.tag, []), found)
    return found


def _check_answer(one: Asked, incidents: list[Incident], found: Findings) -> None:
    line = f"{one.tag} {one.request_id} {one.way} {'stream' if one.stream else 'whole'} {one.final}: {one.seen}"
    if one.final is None:
        found.bad[LOST].append(line)
    elif one.final == "broken" and not died(incidents, f"gateway {one.gateway}", one.at_s, one.ended_s):
        found.bad[LOST].append(f"{line}: the connection broke, and the gateway had not died")
    for fault in one.faults:
        found.bad[LOST if fault.startswith("lost") else WRONG].append(f"{line}: {fault}")
    if one.final == "error" and not any(i.from_s <= one.ended_s and i.until_s >= one.at_s for i in incidents):
        found.bad[UNCAUSED].append(f"{line}: {one.error}")
    if one.final == "result" and not one.complete:
        found.bad[WRONG].append(f"{line}: not complete, and no error")
    for earlier, later in itertools.pairwise(one.attempts):
        _check_replay(one, earlier, later, incidents, found, line)
    for at_s, what in one.repeats:
        _check_repeat(one, at_s, incidents, found, f"{line}, +{at_s - one.ended_s:.1f} s: {what}")


def _check_replay(one: Asked, earlier: Attempt, later: Attempt, incidents: list[Incident], found: Findings, line: str) -> None:
    """The requester saw one answer's beginning, and then another one.

    Without a link nothing fences two nodes, so two causes excuse it: a node that died and was silent from then on, and a
    broker that died: it gives all that is not acknowledged to whoever comes back first, also what others work on.
    """
    silent = earlier.last_s <= later.first_s + CLOCKS_S
    if one.way == "direct" and silent and died(incidents, earlier.node, earlier.first_s, later.first_s):
        found.known["replayed after a node's death"].append(line)
    elif one.way == "direct" and died(incidents, "broker", one.at_s, later.first_s):
        found.known["played by two nodes after the broker's death"].append(line)
    else:
        names = (earlier.node, "broker", f"gateway {one.gateway}")
        causes = [who for who in names if died(incidents, who, one.at_s, later.first_s)]
        found.bad[TWICE].append(f"{line}: died meanwhile: {', '.join(causes) or 'none'}")


def _check_repeat(one: Asked, at_s: float, incidents: list[Incident], found: Findings, line: str) -> None:
    """Something came after the end. The requester did not see it: the service had forgotten the request."""
    nodes = {attempt.node for attempt in one.attempts} or {"A", "B"}
    touched = any(i.from_s <= at_s and i.until_s >= one.at_s and i.who in {*nodes, "broker"} for i in incidents)
    (found.known if touched else found.bad)["repeated after the end, and refused"].append(line)


def died(incidents: list[Incident], who: str, from_s: float, until_s: float) -> bool:
    return any(i.who == who and i.kind in NODE_DEATHS and i.from_s <= until_s and i.until_s >= from_s - CLOCKS_S for i in incidents)


def _check_records(one: Asked, records: list[dict[str, Any]], found: Findings) -> None:
    found.records += len(records)
    ids = {(record["request_id"], record["record_id"]) for record in records}
    line = f"{one.tag} {one.request_id} {one.way} {'stream' if one.stream else 'whole'} {one.final}"
    if len(ids) > 1:
        found.bad[RECORDED_TWICE].append(f"{line}: {ids}")
    if one.request_id and any(request_id != one.request_id for request_id, _ in ids):
        found.bad[RECORDED_TWICE].append(f"{line}: recorded as {ids}")
    _add_up(records, found, line)
    if not ids and needs_record(one):
        found.bad[UNRECORDED].append(line)
    if records:
        last = max(records, key=lambda record: record["attempt"])
        found.attempts[last["attempt"]] += 1
        found.outcomes[last["outcome"]] += 1


def _add_up(records: list[dict[str, Any]], found: Findings, line: str) -> None:
    """As a consumer does: the first record of each id counts. No two requests may share one."""
    first = {record["record_id"]: record for record in reversed(records)}
    for record_id, record in first.items():
        if record_id in found.record_ids:
            found.bad[RECORDED_TWICE].append(f"{line}: {record_id} is another request's too")
        found.record_ids.add(record_id)
        found.tokens[record["tokens_source"]] += record["usage"]["total_tokens"]


def needs_record(one: Asked) -> bool:
    """Whether a node certainly had it. A gateway that died may have published the request, or not."""
    if one.final in ("broken", "hung up"):
        return bool(one.request_id)
    return one.final in ("result", "error", None)
