"""Chat completions and their chunks: looking into one, turning one into the other.

What nobody asked to change keeps its bytes: unknown fields, number formats, tool calls, logprobs.
Source: OpenAI's API reference, "The chat completion object" and "The chat completion chunk object".
"""

from __future__ import annotations

from typing import Any

import msgspec

Usage = tuple[int, int]  # prompt tokens, completion tokens


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Timings(msgspec.Struct, frozen=True):
    prompt_n: int = 0
    predicted_n: int = 0


class _Delta(msgspec.Struct, frozen=True):
    content: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: Any = None


class Peek(msgspec.Struct, frozen=True):
    """The few fields of a chunk or completion that the node looks at."""

    choices: list[_Choice] | None = None
    usage: _Usage | msgspec.UnsetType | None = msgspec.UNSET
    timings: _Timings | None = None
    error: msgspec.Raw | None = None
    model: Any = None

    @property
    def reported(self) -> Usage | None:
        if isinstance(self.usage, _Usage) and (self.usage.prompt_tokens or self.usage.completion_tokens):
            return self.usage.prompt_tokens, self.usage.completion_tokens
        if self.timings is not None and self.timings.predicted_n:  # llama.cpp and llamafile without usage
            return self.timings.prompt_n, self.timings.predicted_n
        return None


class Garbled(Exception):
    """What came is not OpenAI's JSON."""


_peek = msgspec.json.Decoder(Peek)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def look(data: bytes) -> Peek:
    """Raises Garbled."""
    try:
        return _peek.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Garbled(f"{error}: {data[:200]!r}") from None


def text_of(peek: Peek) -> int:
    """Characters of output in a chunk or completion, for an estimate of its tokens."""
    parts = [choice.delta or choice.message for choice in peek.choices or []]
    return sum(_length(p.content) + _length(p.reasoning_content) + _length(p.tool_calls) for p in parts if p)


def _length(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return len(msgspec.json.encode(value)) if value else 0


def compact(data: bytes) -> bytes:
    """JSON on one line: a frame's `data` goes into an SSE line as it is."""
    if b"\n" in data or b"\r" in data:
        return bytes(msgspec.json.format(data, indent=-1))
    return data


def without_usage(data: bytes) -> bytes:
    """A chunk as the requester gets it who did not ask for `include_usage`."""
    fields = _fields.decode(data)
    fields.pop("usage", None)
    return msgspec.json.encode(fields)


def to_chunks(completion: bytes, *, include_usage: bool) -> list[bytes]:
    """A whole completion as the chunks a stream would have brought. Raises Garbled."""
    try:
        whole = msgspec.json.decode(completion)
        choices = whole.pop("choices")
        usage = whole.pop("usage", None)
        base = {**whole, "object": "chat.completion.chunk"}
        chunks = [{**base, "choices": [part]} for choice in choices for part in _parts(choice)]
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise Garbled(f"a completion without usable choices: {error!r}") from None
    if include_usage and usage is not None:
        chunks.append({**base, "choices": [], "usage": usage})
    return [msgspec.json.encode(chunk) for chunk in chunks]


def _parts(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """One choice as two chunks: its output, then its end, as clients expect them apart."""
    delta = dict(choice.get("message") or {})
    if delta.get("tool_calls"):
        delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(delta["tool_calls"])]
    kept = {k: v for k, v in choice.items() if k not in ("message", "finish_reason")}
    first = {**kept, "delta": delta, "finish_reason": None}
    last = {"index": choice.get("index", 0), "delta": {}, "finish_reason": choice.get("finish_reason") or "stop"}
    return [first, last]


class Assembler:
    """The chunks of a stream into one completion."""

    def __init__(self) -> None:
        self._base: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._usage: Any = None

    def add(self, data: bytes) -> None:
        """Raises Garbled."""
        try:
            chunk = msgspec.json.decode(data)
            self._usage = chunk.pop("usage", None) or self._usage
            for choice in chunk.pop("choices", None) or []:
                self._merge_choice(choice)
            self._base = {**chunk, **{k: v for k, v in self._base.items() if v not in (None, "")}}
        except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
            raise Garbled(f"{error!r}: {data[:200]!r}") from None

    def completion(self) -> bytes:
        choices = [self._finished(self._choices[i]) for i in sorted(self._choices)]
        whole = {**self._base, "object": "chat.completion", "choices": choices}
        if self._usage is not None:
            whole["usage"] = self._usage
        return msgspec.json.encode(whole)

    def _merge_choice(self, choice: dict[str, Any]) -> None:
        index = choice.get("index", 0)
        known = self._choices.setdefault(index, {"index": index, "message": {"role": "assistant", "content": None}, "finish_reason": None})
        _merge(known["message"], choice.get("delta") or {})
        for name, value in choice.items():
            if name == "logprobs" and value:
                _merge(known.setdefault("logprobs", {}), value)
            elif name not in ("delta", "index", "logprobs") and value is not None:
                known[name] = value

    @staticmethod
    def _finished(choice: dict[str, Any]) -> dict[str, Any]:
        for call in choice["message"].get("tool_calls") or []:
            call.pop("index", None)
        return choice


_REPLACED = {"role", "id", "type", "index"}  # sent whole each time, never in pieces


def _merge(into: dict[str, Any], delta: dict[str, Any]) -> None:
    """Pieces of text are joined, lists appended (tool calls by their index), objects merged."""
    for name, value in delta.items():
        known = into.get(name)
        if value is None:
            into.setdefault(name, None)
        elif known is None and not isinstance(value, list):
            into[name] = dict(value) if isinstance(value, dict) else value
        elif isinstance(value, str) and isinstance(known, str) and name not in _REPLACED:
            into[name] = known + value
        elif isinstance(value, dict) and isinstance(known, dict):
            _merge(known, value)
        elif isinstance(value, list):
            into[name] = _merge_list(known if isinstance(known, list) else [], value)
        elif value != "":
            into[name] = value


def _merge_list(known: list[Any], pieces: list[Any]) -> list[Any]:
    for piece in pieces:
        match = next((k for k in known if _same_index(k, piece)), None)
        if match is None:
            known.append(piece)
        else:
            _merge(match, piece)
    return known


def _same_index(known: Any, piece: Any) -> bool:
    return isinstance(known, dict) and isinstance(piece, dict) and "index" in piece and known.get("index") == piece["index"]
