"""The limit in the node: by what children tell of their output, and by their slots."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest

import config
from ipc.messages import Alive, Ready
from supervision import limit
from supervision.children import Child, Role
from supervision.limit import LocalLimit, Meter


def child(number: int, slots: int = 8, told: Alive | None = None) -> Child:
    role = Role(f"backend {number}", lambda: None, (), 64)
    process: Any = SimpleNamespace(pid=os.getpid())
    return Child(number, role, process, None, 0.0, Ready(slots, [os.getpid()]), told, at_work=True)  # type: ignore[arg-type]


def tell(teller: Child, produced: int, at_s: float) -> Child:
    teller.alive = Alive([], produced, at_s)
    return teller


def test_the_rate_is_that_of_all_children_once_each_has_told_twice() -> None:
    meter, first, second = Meter(), child(1), child(2)
    assert meter.look([tell(first, 0, 10.0), second]) is None
    assert meter.look([tell(first, 100, 12.0), tell(second, 50, 12.5)]) is None
    found = meter.look([first, tell(second, 250, 14.5)])
    assert found is not None and (found.tokens_per_s, found.from_s, found.to_s) == (150.0, 10.0, 14.5)
    assert meter.look([first, second]) == found, "nothing new was told"


def test_a_child_that_is_gone_counts_no_more_and_its_replacement_begins_anew() -> None:
    meter, first, second = Meter(), child(1), child(2)
    for at_s, produced in ((10.0, 0), (12.0, 20)):
        meter.look([tell(first, produced, at_s), tell(second, produced, at_s)])
    left = meter.look([first])
    assert left is not None and left.tokens_per_s == 10.0
    assert meter.look([first, tell(child(3), 0, 13.0)]) is None


def settings(**variables: str) -> config.Settings:
    return config.load({"NODE_TYPE": "local", "MODEL_NAME": "m", "PULSAR_URL": "pulsar://127.0.0.1:1", **variables})


def test_the_bound_is_the_slots_and_never_more_than_may_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "SAMPLE_EACH_S", 0.0)
    found = LocalLimit(settings(MAX_PROCESS_NUM="3"))
    found.adjust([child(1), child(2)], 0)
    assert found.value == 3 and not found.changes
    found.adjust([child(1, slots=2)], 0)
    assert found.value == 2
    (change,) = found.changes
    assert change.limit == 2 and change.why == "limit 3 → 2: the model servers have 2 slots" and abs(change.at_s - time.time()) < 10
    found.adjust([], 0)
    assert found.value == 2, "while no model is there, nothing changes"


@pytest.mark.parametrize(("variables", "value"), [({"LOCAL_ADAPTIVE": "false"}, 128), ({"NODE_TYPE": "demo"}, 128), ({}, 4)])
def test_only_a_local_nodes_limit_moves(variables: dict[str, str], value: int) -> None:
    found = LocalLimit(settings(**variables))
    found.adjust([child(1, slots=64)], 0)
    assert found.value == value
