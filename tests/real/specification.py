"""docs/asyncapi.yaml and docs/openapi.yaml, as what crosses the wire is held against them."""

from __future__ import annotations

import functools
import json
from typing import Any

import jsonschema
import yaml
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from tests.real.processes import REPOSITORY

DOCS = REPOSITORY / "docs"
ASYNCAPI, OPENAPI, RECORD = "asyncapi.yaml", "openapi.yaml", "usage-record.schema.json"


@functools.cache
def document(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCS / name).read_text(encoding="utf-8"))
    return found


@functools.cache
def _registry() -> Registry[Any]:
    names = (ASYNCAPI, OPENAPI, RECORD)
    return Registry().with_resources((f"https://docs.invalid/{name}", DRAFT202012.create_resource(document(name))) for name in names)


@functools.cache
def _validator(name: str, schema: str) -> jsonschema.Draft202012Validator:
    pointer = {"$ref": f"https://docs.invalid/{name}#/components/schemas/{schema}"}
    return jsonschema.Draft202012Validator(pointer, registry=_registry())


def check(schema: str, value: Any, document_name: str = ASYNCAPI) -> None:
    """value: JSON's bytes or text, or what they mean. Fails where the schema does not allow it."""
    _validator(document_name, schema).validate(json.loads(value) if isinstance(value, bytes | str) else value)


def is_allowed(schema: str, value: Any, document_name: str = ASYNCAPI) -> bool:
    valid: bool = _validator(document_name, schema).is_valid(value)
    return valid


def response_schema(path: str, method: str, status: int) -> str:
    """The name of the schema of a JSON answer. Fails where the document knows no such answer."""
    responses = document(OPENAPI)["paths"][path][method]["responses"]
    response = responses.get(str(status)) or responses["default"]
    if "$ref" in response:
        response = document(OPENAPI)["components"]["responses"][response["$ref"].rsplit("/", 1)[1]]
    name: str = response["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
    return name
