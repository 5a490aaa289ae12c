"""`python -m bench` runs, to its end, and what it prints is what was measured. How fast is not asked here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench import results
from tests.real.processes import REPOSITORY


def test_a_quick_run_measures_node_and_floor(tmp_path: Path) -> None:
    found = tmp_path / "rows.json"
    command = [sys.executable, "-m", "bench", "--quick", "demo", "--json", str(found)]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=110, check=False)
    assert run.returncode in (0, 1), run.stderr  # 1: a target is missed, as on a busy machine
    rows = {row.what: row for row in results.read(found)}
    assert rows["64 in flight: answered rightly"].measured == 100
    for name in ("answers", "latency p50", "node", "node, gateway and broker", "node, beside a floor with a node's promises"):
        row = rows[f"64 in flight: {name}"]
        assert row.measured and row.floor, row
    assert rows["64 in flight, floor with a node's promises: answered rightly"].measured == 100
    assert "64 in flight: answers" in run.stdout
