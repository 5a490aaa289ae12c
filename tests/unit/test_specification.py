"""The API's documents: valid as such, whole, and able to refuse."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate

import errors
from errors import error_object
from gateway.app import application
from gateway.exchange import Gateway
from gateway.models import Models
from tests.real.specification import ASYNCAPI, DOCS, OPENAPI, document, is_allowed
from tests.unit.gateway_fakes import FakeQueue

ROOT = DOCS.parent
REFUSED: dict[str, list[Any]] = {
    "Request": [{}, {"request_id": "", "stream": True, "endpoint": "http://h", "data": {}},
                {"request_id": "a", "stream": "yes", "endpoint": "http://h", "data": {}},
                {"request_id": "a", "stream": True, "endpoint": "ftp://h", "data": {}}],
    "Piece": [{"request_id": "a", "end": True, "data": {"choices": []}}, {"request_id": "a", "end": False}],
    "End": [{"request_id": "a", "end": False}, {"request_id": "a", "end": True, "data": {}}, {"request_id": "a", "end": True, "more": 1}],
    "Begin": [{"type": "begin", "request_id": "a", "attempt": 0}, {"type": "go", "request_id": "a", "attempt": 1}],
    "Reply": [{"type": "taken", "request_id": "a", "attempt": 1}, {"type": "go", "request_id": "a"}],
    "Receipt": [{"type": "go", "request_id": "a"}], "Cancel": [{"type": "cancel"}],
    "Properties": [{"workernode-attempt": "0"}, {"workernode-deaths": 1}], "RequestId": ["", "x" * 201],
}  # fmt: skip


def pointers(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from ([value["$ref"]] if isinstance(value.get("$ref"), str) else [])
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from pointers(each)


@pytest.mark.parametrize("name", [ASYNCAPI, OPENAPI])
def test_all_that_is_pointed_at_is_there(name: str) -> None:
    for pointer in pointers(document(name)):
        file, _, path = pointer.partition("#")
        found: Any = document(file.removeprefix("./") or name)
        for step in path.split("/")[1:]:
            found = found[step.replace("~1", "/")]


@pytest.mark.parametrize("name", [ASYNCAPI, OPENAPI])
def test_all_schemas_are_schemas(name: str) -> None:
    for schema in document(name)["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_openapi_is_valid_by_its_own_schema() -> None:
    validate(document(OPENAPI), base_uri=(DOCS / OPENAPI).as_uri())


def test_asyncapis_operations_send_what_their_channels_carry() -> None:
    """Its official schema comes in no Python package; `asyncapi validate docs/asyncapi.yaml` checks the rest."""
    found = document(ASYNCAPI)
    assert found["asyncapi"] == "3.0.0"
    used = set()
    for operation in found["operations"].values():
        channel = operation["channel"]["$ref"].rsplit("/", 1)[1]
        used.add(channel)
        carried = {f"#/channels/{channel}/messages/{message}" for message in found["channels"][channel]["messages"]}
        assert {message["$ref"] for message in operation.get("messages", [])} <= carried
    assert used == found["channels"].keys()


def test_each_schema_of_a_message_can_refuse() -> None:
    assert REFUSED.keys() == document(ASYNCAPI)["components"]["schemas"].keys()
    for schema, values in REFUSED.items():
        assert not [value for value in values if is_allowed(schema, value)], schema


def test_the_table_of_errors_names_codes_that_there_are() -> None:
    rows = re.findall(r"^\| ([45][0-9]{2}) \| (.+?) \|", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    codes = {code: int(status) for status, listed in rows for code in re.findall(r"`(\w+)`", listed)}
    files = [ROOT / "errors.py", *(path for folder in ("gateway", "supervision", "backends") for path in (ROOT / folder).glob("*.py"))]
    source = "".join(path.read_text(encoding="utf-8") for path in files)
    assert len(codes) > 20
    assert not [code for code in codes if f'"{code}"' not in source and not code.startswith("upstream_")]
    known = {code: errors._known_status(error_object("", "none of these", code)) for code in codes}
    assert not {code: status for code, status in known.items() if status not in (None, codes[code])}


def test_openapi_has_the_gateways_paths_and_no_others() -> None:
    routes = application(Gateway(FakeQueue(), Models(), "http://h", 1.0)).routes
    served = {(route.path.replace(":path", ""), method) for route in routes for method in getattr(route, "methods", None) or ()}  # type: ignore[attr-defined]
    described = {(path, method.upper()) for path, methods in document(OPENAPI)["paths"].items() for method in methods}
    assert {(path, method) for path, method in served if method != "HEAD" and path != "/"} == described
