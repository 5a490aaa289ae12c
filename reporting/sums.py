"""Sums over usage records, each request counted once. Pure: from messages to a table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

_HEADINGS = ("model", "outcome", "requests", "prompt tokens", "completion tokens", "estimated", "repeats")
_TEXT_COLUMNS = 2


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Record(msgspec.Struct):
    """What is needed of one; what later versions add does not matter."""

    record_id: str
    model: str
    outcome: str
    usage: _Usage
    tokens_source: str = "none"


@dataclass
class Sum:
    """estimated_tokens: of both kinds, those that the upstream did not report. repeats: records beyond the first."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated_tokens: int = 0
    repeats: int = 0

    def add(self, usage: _Usage, *, estimated: bool) -> None:
        self.requests += 1
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.estimated_tokens += usage.prompt_tokens + usage.completion_tokens if estimated else 0

    @property
    def estimated_share(self) -> float:
        """From 0 to 1, of all tokens."""
        return self.estimated_tokens / ((self.prompt_tokens + self.completion_tokens) or 1)


@dataclass
class Sums:
    """By model and outcome. others: messages that are no usage records."""

    by_kind: dict[tuple[str, str], Sum] = field(default_factory=dict)
    others: int = 0
    _first: dict[bytes, Sum] = field(default_factory=dict, repr=False)
    _decoder: msgspec.json.Decoder[_Record] = field(default_factory=lambda: msgspec.json.Decoder(_Record), repr=False)

    def add(self, message: bytes) -> None:
        """The first record of a request counts; a repeat is counted where that one is, whatever it says itself."""
        try:
            record = self._decoder.decode(message)
        except (ValueError, RecursionError):  # ValueError: msgspec's own, and text that is no UTF-8
            self.others += 1
            return
        identity = record.record_id.encode()
        if (known := self._first.get(identity)) is not None:
            known.repeats += 1
            return
        found = self._first[identity] = self.by_kind.setdefault((record.model, record.outcome), Sum())
        found.add(record.usage, estimated=record.tokens_source == "estimated")

    @property
    def total(self) -> Sum:
        every = self.by_kind.values()
        names = Sum.__dataclass_fields__
        return Sum(**{name: sum(getattr(one, name) for one in every) for name in names})


def table(sums: Sums) -> str:
    """One line for each model and outcome, and one for all of them."""
    rows = [[_plain(model), _plain(outcome), *_figures(one)] for (model, outcome), one in sorted(sums.by_kind.items())]
    lines = _aligned([list(_HEADINGS), *rows, ["all", "", *_figures(sums.total)]])
    if sums.others:
        lines.append(f"{sums.others:,} other messages on the topic are no usage records")
    return "\n".join(lines)


def as_json(sums: Sums) -> dict[str, Any]:
    kinds = [{"model": model, "outcome": outcome} | _fields(one) for (model, outcome), one in sorted(sums.by_kind.items())]
    return {"sums": kinds, "total": _fields(sums.total), "other_messages": sums.others}


def _fields(one: Sum) -> dict[str, Any]:
    figures: dict[str, Any] = msgspec.to_builtins(one)
    return figures | {"estimated_share": round(one.estimated_share, 6)}


def _figures(one: Sum) -> list[str]:
    counts = [f"{count:,}" for count in (one.requests, one.prompt_tokens, one.completion_tokens)]
    share = "0 %" if not one.estimated_tokens else f"{100 * one.estimated_share:.1f} %"
    return [*counts, share, f"{one.repeats:,}"]


def _plain(text: str) -> str:
    """Anyone may publish: a terminal would obey what is in there."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _aligned(rows: list[list[str]]) -> list[str]:
    """Texts to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_cells(row, widths)).rstrip() for row in rows]


def _cells(row: list[str], widths: list[int]) -> Iterable[str]:
    for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.ljust(width) if place < _TEXT_COLUMNS else cell.rjust(width)
