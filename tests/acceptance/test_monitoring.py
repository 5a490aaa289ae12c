"""The alert rules and the dashboard: each metric that they name is one that a node really has, and promtool takes them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.real.processes import REPOSITORY, wait_until
from tests.real.watched_node import WatchedNode

MONITORING = REPOSITORY / "deploy" / "monitoring"
NAME = re.compile(r"\b(?:workernode|gen_ai|process)_[a-z_]+")
PROMTOOL = shutil.which("promtool")


@pytest.fixture(scope="module")
def exposed() -> Iterator[str]:
    """What a node says at /metrics after a request."""
    with WatchedNode("http://127.0.0.1:1", NODE_TYPE="demo") as node:
        assert node.ask()[0] == 200
        yield wait_until(lambda: _with_backlog(node.metrics()), within_s=60, what="the backlog")


def _with_backlog(text: str) -> str | None:
    return text if "\nworkernode_backlog " in text else None


def expressions() -> dict[str, str]:
    """Where → PromQL, of both files."""
    rules: dict[str, Any] = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    found = {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    found |= {f"{p['title']} {t['refId']}": t["expr"] for p in dashboard["panels"] for t in p["targets"]}
    return found | {v["name"]: v["query"]["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"}


def test_every_metric_that_is_named_is_there(exposed: str) -> None:
    declared = set(re.findall(r"^# TYPE (\S+)", exposed, re.MULTILINE))
    there = declared | set(re.findall(r"^([a-z_]+)[{ ]", exposed, re.MULTILINE))
    named = {(where, name) for where, expr in expressions().items() for name in NAME.findall(re.sub(r'"[^"]*"|by \([^)]*\)', "", expr))}
    assert len({name for _, name in named}) > 20
    assert not {(where, name) for where, name in named if name not in there}


def test_the_documents_list_every_metric(exposed: str) -> None:
    declared = {name for name in re.findall(r"^# TYPE (\S+)", exposed, re.MULTILINE) if not name.startswith("process_")}
    text = Path(REPOSITORY / "docs" / "metrics.md").read_text()
    assert declared == set(re.findall(r"^\| `((?:workernode|gen_ai)_[a-z_]+)`", text, re.MULTILINE))


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt install prometheus)")
def test_promtool_takes_rules_and_metrics(exposed: str) -> None:
    assert PROMTOOL
    rules = subprocess.run([PROMTOOL, "check", "rules", str(MONITORING / "alerts.yaml")], capture_output=True, text=True, timeout=60)
    assert rules.returncode == 0, rules.stdout + rules.stderr
    metrics = subprocess.run([PROMTOOL, "check", "metrics"], input=exposed, capture_output=True, text=True, timeout=60)
    assert metrics.returncode == 0, metrics.stdout + metrics.stderr
