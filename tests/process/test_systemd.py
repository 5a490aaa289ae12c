"""The units, as systemd itself reads them; what a node says to it: test_notify.py."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import config
from supervision.node import END_WITHIN_S
from tests.real.processes import REPOSITORY

UNITS = REPOSITORY / "deploy" / "systemd"
NAMES = ("workernode.service", "workernode@.service")
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze (Debian's package systemd)")


def service(name: str) -> dict[str, str]:
    """Its directives; one that is there several times in one line."""
    lines = (UNITS / name).read_text().split("[Service]")[1].split("[Install]")[0].splitlines()
    found: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith("#"):
            directive, _, value = line.partition("=")
            found[directive] = f"{found[directive]} {value}" if directive in found else value
    return found


@pytest.fixture(params=NAMES)
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """As it would be installed, with a Python that is there."""
    name = str(request.param).replace("@.", "@gpu0.")
    program = tmp_path / "workernode" / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.symlink_to(shutil.which("sh") or "/bin/sh")
    copy = tmp_path / name
    copy.write_text((UNITS / str(request.param)).read_text().replace("/opt/workernode", str(tmp_path / "workernode")))
    return copy


@needs_systemd
def test_systemd_understands_every_line(unit: Path) -> None:
    ran = subprocess.run(["systemd-analyze", "verify", "--recursive-errors=no", str(unit)], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")


@needs_systemd
def test_a_mistake_would_be_found(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("ProtectSystem=strict", "ProtectSystem=strictly\nNoSuchDirective=yes"))
    ran = subprocess.run(["systemd-analyze", "verify", "--recursive-errors=no", str(unit)], capture_output=True, text=True, timeout=60)
    assert "strictly" in ran.stderr and "NoSuchDirective" in ran.stderr


@needs_systemd
def test_little_is_exposed(unit: Path) -> None:
    """Of 10: 1.3 and, with GPUs, 1.8; a unit without any hardening has 9.6."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("name", NAMES)
def test_what_the_units_promise_is_what_the_node_does(name: str) -> None:
    found = service(name)
    variables = dict(pair.split("=", 1) for pair in found["Environment"].split())
    known = re.findall(r"^#([A-Z_]+)=$", config.env_example(), re.MULTILINE)
    assert variables.keys() - {"HOME", "PYTHONDONTWRITEBYTECODE"} <= set(known)
    assert float(found["TimeoutStopSec"]) >= float(variables["DRAIN_TIMEOUT_S"]) + END_WITHIN_S
    assert float(found["WatchdogSec"]) > END_WITHIN_S, "the loop does not turn while the node ends"
    wanted = {"Type": "notify", "KillMode": "mixed", "Restart": "on-failure", "RestartPreventExitStatus": "78", "OOMPolicy": "continue"}
    assert wanted.items() <= found.items()
    names = [pair.partition(":")[0] for pair in found["LoadCredential"].split()]
    assert names == list(config.CREDENTIALS.values())
