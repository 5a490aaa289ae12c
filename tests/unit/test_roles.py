"""How many backend children a node has."""

from __future__ import annotations

import pytest

import config
from supervision import roles


@pytest.mark.parametrize(
    ("cores", "variables", "count"),
    [
        (2, {}, 2), (1, {}, 1), (16, {}, 2), (16, {"MAX_PROCESS_NUM": "1024"}, 8), (2, {"MAX_PROCESS_NUM": "1024"}, 2),
        (1, {"MAX_PROCESS_NUM": "1025"}, 3), (16, {"MAX_PROCESS_NUM": "1"}, 1),
        (2, {"BACKEND_PROCESSES": "5"}, 5), (2, {"BACKEND_PROCESSES": "5", "MAX_PROCESS_NUM": "3"}, 3),
        (16, {"NODE_TYPE": "local", "LOCAL_REPLICAS": "3"}, 3),
    ],
)  # fmt: skip
def test_children_by_cores_and_requests(monkeypatch: pytest.MonkeyPatch, cores: int, variables: dict[str, str], count: int) -> None:
    monkeypatch.setattr(roles, "usable_cores", lambda: cores)
    settings = config.load({"NODE_TYPE": "demo", "PULSAR_URL": "pulsar://127.0.0.1:6650", "MODEL_NAME": "m", **variables})
    assert roles.child_count(settings) == count
    backends = [role for role in roles.roles(settings, None) if role.capacity]
    assert len(backends) == count + (settings.node_type != "local"), "and a spare, but for a model server"
    assert count * backends[0].capacity >= settings.max_process_num


def test_usable_cores_are_those_of_the_affinity_and_of_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    from limits import cpu

    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    for quota, cores in [(None, 8), (16.0, 8), (2.5, 2), (0.5, 1)]:
        monkeypatch.setattr(cpu, "quota_cores", lambda quota=quota: quota)
        assert cpu.usable_cores() == cores
