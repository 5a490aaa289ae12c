"""Usage records as their published schema wants them."""

from __future__ import annotations

import functools
import json
from typing import Any

import jsonschema

from tests.real.processes import REPOSITORY

SCHEMA_PATH = REPOSITORY / "docs" / "usage-record.schema.json"


@functools.cache
def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(SCHEMA_PATH.read_text())
    return found


def checked(record: dict[str, Any]) -> dict[str, Any]:
    """The record; fails where the schema does not allow it."""
    jsonschema.Draft202012Validator(schema()).validate(record)
    return record
