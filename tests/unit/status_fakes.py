"""A node that stands still, and requests that ended, for the tests of what the status port tells."""

from __future__ import annotations

from typing import Any

import config
from ipc.messages import End, Outcome
from reporting.usage import Ended, record
from status.facts import BucketFacts, ChildFacts, InHand, LimitChange, Snapshot, UpstreamFacts

SETTINGS = config.load({"NODE_TYPE": "remote", "MODEL_NAME": "m", "API_URL": "http://h", "PULSAR_URL": "pulsar://h"})
NO_PROCESS = 1 << 30
AT_MS = 1_790_000_000_000.0


class StillNode:
    """`held`: what `find` finds; `killed`: what was."""

    def __init__(self, *held: InHand) -> None:
        self.held = {each.request_id: each for each in held}
        self.killed: list[int] = []

    def snapshot(self, why_not_ready: str) -> Snapshot:
        return Snapshot(
            at_s=AT_MS / 1000, why_not_ready=why_not_ready, taken=10, ended=6, given_back=1, open=3, states={"dispatched": 2, "begun": 1},
            in_hand=3, unconfirmed=0, limit=128, capacity=128,
            children=[
                ChildFacts(1, "backend 0", [NO_PROCESS], "at work", 12.0, 3, 64),
                ChildFacts(2, "gateway", [NO_PROCESS], "at work", 12.0, 0, 0),
            ],
            upstream=UpstreamFacts(0.0, 5, 2, None, [BucketFacts("requests", 40.0, 60.0, 1.0)]),
            limit_changes=[LimitChange(AT_MS / 1000, 8, "limit 8: the model servers' slots")],
        )  # fmt: skip

    def find(self, request_id: str) -> InHand | None:
        return self.held.get(request_id)

    def kill(self, child: int) -> bool:
        self.killed.append(child)
        return child == 1


def ended(request_id: str = "r", end: End = "answered", *, error: dict[str, Any] | None = None, **more: Any) -> Ended:
    """Received 2 ms after it was published, sent 5 ms later, first output 100 ms and last 300 ms after that; `more`: of its
    outcome, or `trail`."""
    trail = more.pop("trail", ())
    times = {"upstream_sent_ms": AT_MS + 7, "first_token_ms": AT_MS + 107, "last_token_ms": AT_MS + 307, "answered_ms": AT_MS + 310}
    fields: dict[str, Any] = {"prompt_tokens": 12, "completion_tokens": 21, "tokens_source": "reported", **times, **more}
    outcome = Outcome(1, end, error, **fields)
    return Ended(request_id, request_id, True, None, 1, AT_MS, AT_MS + 2, AT_MS + 3, outcome, error, trail=trail)


def record_of(request_ended: Ended) -> bytes:
    return record(request_ended, SETTINGS, "host-1")
