"""One request's way through the node, step by step: from its usage record, or from what the node holds. Pure."""

from __future__ import annotations

import msgspec

from status.facts import InHand
from status.stories import Story

_STEPS = {
    "published": "published to the queue",
    "received": "received by the node",
    "dispatched": "handed to a backend",
    "upstream_sent": "sent to the model",
    "first_token": "first output of the model",
    "last_token": "last output of the model",
}
_ENDS = {
    "answered": "answered: the requester has its result",
    "failed": "failed: the requester has an error",
    "gone": "ended: the requester has left",
    "unknown": "ended: the requester's service does not know it any more",
    "undeliverable": "ended: its answer could not be delivered",
}
_STATES = {
    "waiting": "waits in the node",
    "dispatched": "is being computed",
    "begun": "is streaming to its requester",
    "delivering": "is computed; its answer is being delivered",
    "settling": "has ended; the queue has not confirmed that yet",
}
_WAITS = {
    "task": "for a free slot",
    "alone": "for a child of its own, as it was aboard when two died",
    "refusal": "for its error to be delivered",
}
_GIVEN_BACK = "this node gave it back: it waits in the queue, or another node has it"


class Step(msgspec.Struct, frozen=True):
    """`at_ms`: UTC milliseconds; `after_ms`: since the step before."""

    at_ms: float
    words: str
    after_ms: float


class Timeline(msgspec.Struct, frozen=True):
    """`source`: where this was found. `earlier`: what its attempts ended with before, on any node."""

    request_id: str
    source: str
    is_over: bool
    words: str
    steps: list[Step]
    earlier: list[str]
    facts: dict[str, str]


class _At(msgspec.Struct):
    """As much of a usage record as is told here."""

    request_id: str
    outcome: str
    attempt: int
    stream: bool
    model: str
    tokens_source: str
    dead_lettered: bool
    usage: dict[str, int]
    node: dict[str, str]
    timestamps_ms: dict[str, float | None]
    error: dict[str, object] | None = None
    upstream_model: str | None = None
    traceparent: str | None = None


def of_record(record: bytes, source: str, story: Story | None = None) -> Timeline:
    """Of a request that has ended. Raises msgspec.DecodeError where `record` is none."""
    at = msgspec.json.decode(record, type=_At)
    story = story or Story()
    steps = [(ms, words) for name, words in _STEPS.items() if (ms := at.timestamps_ms.get(name)) is not None]
    steps.append((at.timestamps_ms.get("answered") or 0.0, _ENDS.get(at.outcome, at.outcome)))
    notes = [(note.at_ms, note.words) for note in story.notes]
    error = at.error or {}
    names = " / ".join(str(error[name]) for name in ("type", "code") if error.get(name) is not None)
    why = f": {story.why or names}" if at.error else ""
    words = _ENDS.get(at.outcome, at.outcome) + why
    return Timeline(at.request_id, source, True, words, _in_order(notes + steps), list(story.trail), _facts(at, names))


def _facts(at: _At, error: str) -> dict[str, str]:
    source = "" if at.tokens_source == "reported" else f" ({at.tokens_source})"
    found = {
        "model": at.model + (f" ({at.upstream_model} at the upstream)" if at.upstream_model not in (None, at.model) else ""),
        "attempt": str(at.attempt),
        "tokens": f"{at.usage.get('prompt_tokens', 0)} + {at.usage.get('completion_tokens', 0)}{source}",
        "stream": "yes" if at.stream else "no",
        "error": error,
        "dead letter": "yes" if at.dead_lettered else "",
        "node": at.node.get("id", ""),
        "traceparent": at.traceparent or "",
    }
    return {name: value for name, value in found.items() if value}


def of_in_hand(held: InHand, story: Story | None, now_ms: float) -> Timeline:
    """Of a request that the node holds now."""
    story = story or Story()
    steps = [(note.at_ms, note.words) for note in story.notes]
    steps += [(held.published_ms, _STEPS["published"]), (held.received_ms, _STEPS["received"])]
    if held.dispatched_ms is not None:
        steps.append((held.dispatched_ms, f"handed to {held.child}" if held.child else _STEPS["dispatched"]))
    waits = f" {_WAITS.get(held.waits_for, '')}" if held.state == "waiting" else ""
    words = f"it {_STATES.get(held.state, held.state)}{waits}"
    steps.append((now_ms, f"now: {words}"))
    facts = {"attempt": str(held.attempt), "stream": "yes" if held.stream else "no"}
    return Timeline(held.request_id, "the node's hands", False, words, _in_order(steps), list(held.trail), facts)


def of_notes(request_id: str, story: Story) -> Timeline:
    """Of a request that this node gave back and has not seen again."""
    steps = _in_order([(note.at_ms, note.words) for note in story.notes])
    return Timeline(request_id, "this node's memory", False, _GIVEN_BACK, steps, [], {})


def _in_order(steps: list[tuple[float, str]]) -> list[Step]:
    found: list[Step] = []
    for at_ms, words in sorted(steps, key=lambda step: step[0]):
        found.append(Step(at_ms, words, at_ms - found[-1].at_ms if found else 0.0))
    return found
