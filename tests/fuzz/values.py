"""JSON that no vendor means to send: odd values in any place of a good one, and spellings that are no JSON at all."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from random import Random
from typing import Any


@dataclass(frozen=True)
class Spelt:
    """A value by its bytes, as only a broken server would write it."""

    text: bytes


@dataclass
class Twice:
    """An object in which a key stands twice."""

    fields: dict[str, Any]
    key: str
    value: Any


SPELLINGS = [
    b"", b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"-0", b"01", b"+1", b".5", b"1.", b"0x1", b"True", b"undefined", b"'x'",
    b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\ud83d\\ude00"', b'"\\x41"', b'"\\u12"', b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\xaf"', b'"\x00"',
    b'"\n"', b'"\x1b[31m"', b'"\xe2\x80\xa8"', b'"\xef\xbb\xbf"', b"9" * 400, b"-" + b"9" * 30, b"[" * 200, b"[" * 500 + b"]" * 500,
    b"[" * 5000 + b"]" * 5000, b'{"a":' * 300 + b"1" + b"}" * 300, b"{", b"]", b'"', b"/*", b"[1,]", b'{"a":1,}', b'{"a"}', b"{1:2}",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 1.5, 200, 404, 429, 2**31, 2**53, 2**63, 2**64, -(2**63), 1e308, "", " ", "0", "null", "stop", "error",
    "é🙂", "a\nb\r\nc", "data: [DONE]", "\x00\x07", "x" * 5000, "sk-abcdef1234567890", "http://10.0.0.7:8000/v1", "insufficient_quota",
    "model_not_found", "server_error", [], {}, [None], [[]], [{}], ["x"], [0, "x", None], {"": ""}, {"error": {}}, {"message": "m"},
    {"index": 0}, [{"index": "x"}], [{"index": 0, "delta": {"content": "odd"}}], {"error": {"message": "m", "type": "server_error"}},
]  # fmt: skip


def odd(rng: Random) -> Any:
    return Spelt(rng.choice(SPELLINGS)) if rng.random() < 0.3 else copy.deepcopy(rng.choice(VALUES))


def mutated(rng: Random, value: Any) -> Any:
    """One thing in it is other than it should be."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places or rng.random() < 0.03:
        return odd(rng)
    container, key = rng.choice(places)
    _CHANGES[rng.randrange(len(_CHANGES))](rng, container, key, places)
    if isinstance(value, dict) and value and rng.random() < 0.05:
        return Twice(value, rng.choice(list(value)), odd(rng))
    return value


def _places(value: Any) -> Any:
    """(container, key) of everything inside."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _replace(rng: Random, container: Any, key: Any, places: list[Any]) -> None:
    container[key] = odd(rng)


def _remove(rng: Random, container: Any, key: Any, places: list[Any]) -> None:
    del container[key]


def _wrap(rng: Random, container: Any, key: Any, places: list[Any]) -> None:
    container[key] = [container[key]] if rng.random() < 0.5 else {"value": container[key]}


def _move(rng: Random, container: Any, key: Any, places: list[Any]) -> None:
    other, at = rng.choice(places)
    container[key] = copy.deepcopy(other[at])


def _add(rng: Random, container: Any, key: Any, places: list[Any]) -> None:
    if isinstance(container, dict):
        container[rng.choice(["error", "usage", "choices", "index", "message", "delta", "code", "type", "x\n"])] = odd(rng)
    else:
        container.insert(rng.randrange(len(container) + 1), odd(rng))


_CHANGES = [_replace, _replace, _replace, _remove, _wrap, _move, _add]


def written(value: Any, *, spaced: bool = False) -> bytes:
    """As JSON; indented over several lines where `spaced`."""
    comma, colon = (b" ,\n ", b" : ") if spaced else (b",", b":")
    if isinstance(value, Spelt):
        return value.text
    if isinstance(value, Twice):
        pairs = [*value.fields.items(), (value.key, value.value)]
    elif isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        return b"[" + comma.join(written(item, spaced=spaced) for item in value) + b"]"
    else:
        return json.dumps(value, ensure_ascii=False).encode()
    return b"{" + comma.join(json.dumps(name).encode() + colon + written(item, spaced=spaced) for name, item in pairs) + b"}"


def damaged(rng: Random, data: bytes) -> bytes:
    """A few bytes are lost, doubled, changed or put in."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(found) + 1)
        length = rng.choice((1, 1, 2, 8, 60))
        change = rng.randrange(4)
        if change == 0:
            del found[at : at + length]
        elif change == 1:
            found[at:at] = found[at : at + length]
        elif change == 2:
            found[at : at + length] = rng.randbytes(min(length, len(found) - at))
        else:
            found[at:at] = rng.choice((b"\x00", b"\n", b"\r", b"\r\n\r\n", b"\xff", b'"', b"}", b"data: ", b"\n\n", b"\\", b"0\r\n\r\n"))
    return bytes(found)
