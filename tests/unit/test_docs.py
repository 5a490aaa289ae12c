"""What README and docs/ point at is there, and what they name is what the code calls it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from config import Settings, variable_name
from gateway import body, connections, exchange, keyfile, nodes, pending
from gateway.publisher import MAX_MESSAGE_BYTES

ROOT = Path(__file__).parents[2]
# Figures and screenshots are made by hand, of a release; they may come after what points at them.
BY_HAND = re.compile(r"(docs/)?(performance\.md|images/.*\.png)")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert not [target for target in found if target and not (page.parent / target).exists() and not BY_HAND.fullmatch(target)]
    named = re.findall(r"`?\b(docs/[\w.-]+\.(?:md|json|yaml))\b", text)
    assert not [target for target in named if not (ROOT / target).exists() and not BY_HAND.fullmatch(target)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_there(page: Path) -> None:
    modules = set(re.findall(r"python3? -m ([\w.]+)", page.read_text(encoding="utf-8"))) - {"pip", "pytest", "venv", "compileall"}
    places = [ROOT / module.replace(".", "/") for module in modules]
    assert not [place for place in places if not (place.with_suffix(".py").exists() or (place / "__main__.py").exists())]


def test_every_variable_that_is_named_is_one() -> None:
    known = {variable_name(field) for field in dataclasses.fields(Settings)}
    theirs = {"CUDA_VISIBLE_DEVICES", "PULSAR_HOME", "KUBECONFIG", "PULSAR_MEM", "ENGINE_INDEX"}
    named = {name for page in PAGES for name in re.findall(r"`([A-Z]{2,}(?:_[A-Z]+)+)(?:=[^`]*)?`", page.read_text(encoding="utf-8"))}
    assert named - known - theirs == set()


def test_the_bounds_that_security_md_tells_are_the_codes() -> None:
    text = " ".join((ROOT / "docs/security.md").read_text(encoding="utf-8").split())
    assert f"{connections.HEAD_WITHIN_S:g} s and {connections.MAX_HEAD_BYTES >> 10} KiB" in text
    assert f"{body.READ_TIMEOUT_S:g} s and {round(MAX_MESSAGE_BYTES / 2**20)} MiB; {body.ROOM_BYTES >> 20} MiB of all" in text
    assert f"{nodes.MAX_ANSWER_BYTES >> 20} MiB; {pending.DEFAULT_BUFFER_BYTES >> 20} MiB that its requester" in text
    assert f"a key of {keyfile.SHORTEST_KEY} characters" in text
    assert f"{exchange.Gateway.max_pending}" == str(Settings().max_pending)
