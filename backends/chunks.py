"""Chat completions and their chunks: looking into one, turning one into the other.

What nobody asked to change keeps its bytes: unknown fields, number formats, tool calls, logprobs.
Source: OpenAI's API reference, "The chat completion object" and "The chat completion chunk object".
"""

from __future__ import annotations

from typing import Any

import msgspec

Usage = tuple[int, int]  # prompt tokens, completion tokens
_LONGEST_NAME = 200
_Fields = dict[str, Any]  # values: msgspec.Raw where they stay as they came


class _Delta(msgspec.Struct, frozen=True):
    content: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None


class _Choice(msgspec.Struct, frozen=True):
    index: int | None = 0
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: Any = None


class Peek(msgspec.Struct, frozen=True):
    """The few fields of a chunk or completion that the node looks at. `Any` where an odd value should harm nobody."""

    choices: list[_Choice] | None = None
    usage: Any = msgspec.UNSET
    timings: Any = None
    error: Any = None
    object: Any = None
    message: Any = None
    model: Any = None

    @property
    def failed(self) -> bool:
        """An error object, also one that stands for itself, as vLLM's did."""
        bare = self.choices is None and (self.object == "error" or isinstance(self.message, str))
        return bool(self.error) or bare

    @property
    def model_name(self) -> str | None:
        """It goes into records."""
        return self.model[:_LONGEST_NAME] if self.model and isinstance(self.model, str) else None

    @property
    def reported(self) -> Usage | None:
        if not self.usage and not self.timings:  # most chunks
            return None
        timed = _counts(self.timings, "prompt_n", "predicted_n")  # llama.cpp and llamafile without usage
        return _counts(self.usage, "prompt_tokens", "completion_tokens") or timed


def _counts(found: Any, prompt: str, completion: str) -> Usage | None:
    if not isinstance(found, dict):
        return None
    usage = _count(found.get(prompt)), _count(found.get(completion))
    return usage if any(usage) else None


def _count(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and 0 <= value < 1 << 40 else 0


class Garbled(Exception):
    """What came is not OpenAI's JSON."""


_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, AttributeError, KeyError, TypeError, ValueError)
_NO_USAGE = b',"usage":null}'  # at the end of an object, nothing else can end like this
_peek = msgspec.json.Decoder(Peek)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_list_of_fields = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])


def look(data: bytes) -> Peek:
    """Raises Garbled, also where `data` is not UTF-8: a WebSocket would be closed for such a frame."""
    try:
        if not data.isascii():
            data.decode()
        return _peek.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Garbled(f"{error}: {data[:200]!r}") from None


def text_of(peek: Peek) -> int:
    """Characters of output in a chunk or completion, for an estimate of its tokens."""
    size = 0
    for choice in peek.choices or ():
        said = choice.delta or choice.message
        if said is not None:
            size += _length(said.content)
            if said.reasoning_content or said.tool_calls:
                size += _length(said.reasoning_content) + _length(said.tool_calls)
    return size


def _length(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return len(msgspec.json.encode(value)) if value else 0


def compact(data: bytes) -> bytes:
    """JSON on one line: a frame's `data` goes into an SSE line as it is. Raises Garbled."""
    data = data.strip()
    if b"\n" not in data and b"\r" not in data:
        return data
    try:
        return bytes(msgspec.json.format(data, indent=-1))
    except (msgspec.DecodeError, RecursionError) as error:
        raise Garbled(f"{error}: {data[:200]!r}") from None


def for_requester(data: bytes, peek: Peek, *, wants_usage: bool) -> bytes | None:
    """A chunk as the requester gets it, without the usage that the node alone asked for; None where nothing is left of it.

    Clients look into `choices` and each `delta` without asking whether they are there. Raises Garbled."""
    hides_usage = not wants_usage and peek.usage is not msgspec.UNSET
    brings_usage = wants_usage and peek.usage
    if (peek.choices is None and not brings_usage) or (not peek.choices and hides_usage and peek.usage):
        return None
    lacks = peek.choices is None or None in [choice.delta for choice in peek.choices]
    if hides_usage and not lacks and data.endswith(_NO_USAGE):  # as OpenAI ends each chunk but the last
        return data[: -len(_NO_USAGE)] + b"}"
    try:
        return _mended(data, hides_usage) if hides_usage or lacks else data
    except _UNREADABLE as error:
        raise Garbled(f"{error!r}: {data[:200]!r}") from None


def _mended(data: bytes, hides_usage: bool) -> bytes:
    fields: _Fields = _fields.decode(data)
    if hides_usage:
        fields.pop("usage", None)
    choices = _list_of_fields.decode(fields["choices"]) if _is_set(fields.get("choices")) else []
    if any(not _is_set(choice.get("delta")) for choice in choices) or not choices:
        fields["choices"] = [choice if _is_set(choice.get("delta")) else {**choice, "delta": {}} for choice in choices]
    return msgspec.json.encode(fields)


def to_chunks(completion: bytes, *, include_usage: bool) -> list[bytes]:
    """A whole completion as the chunks a stream would have brought. Raises Garbled."""
    try:
        whole: _Fields = _fields.decode(completion)
        parts = [part for choice in _list_of_fields.decode(whole.pop("choices")) for part in _parts(choice)]
    except _UNREADABLE as error:
        raise Garbled(f"a completion without usable choices: {error!r}") from None
    usage = whole.pop("usage", None)
    base = {**whole, "object": "chat.completion.chunk"}
    chunks: list[_Fields] = [{**base, "choices": [part]} for part in parts]
    if include_usage and _is_set(usage):
        chunks.append({**base, "choices": [], "usage": usage})
    return [msgspec.json.encode(chunk) for chunk in chunks]


def _parts(choice: _Fields) -> list[_Fields]:
    """One choice as two chunks: its output, then its end, as clients expect them apart."""
    delta: _Fields = _fields.decode(choice["message"]) if _is_set(choice.get("message")) else {}
    if _is_set(delta.get("tool_calls")):
        delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(_list_of_fields.decode(delta["tool_calls"]))]
    kept = {k: v for k, v in choice.items() if k not in ("message", "finish_reason")}
    reason = choice.get("finish_reason")
    first = {**kept, "delta": delta, "finish_reason": None}
    last = {"index": choice.get("index", 0), "delta": {}, "finish_reason": reason if _is_set(reason) else "stop"}
    return [first, last]


def _is_set(value: msgspec.Raw | None) -> bool:
    return value is not None and bytes(value) != b"null"


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
        except _UNREADABLE as error:
            raise Garbled(f"{error!r}: {data[:200]!r}") from None

    def completion(self) -> bytes:
        """Raises Garbled."""
        try:
            choices = [self._finished(self._choices[i]) for i in sorted(self._choices)]
            whole = {**self._base, "object": "chat.completion", "choices": choices}
            return msgspec.json.encode(whole if self._usage is None else {**whole, "usage": self._usage})
        except _UNREADABLE as error:
            raise Garbled(f"a stream without usable choices: {error!r}") from None

    def _merge_choice(self, choice: dict[str, Any]) -> None:
        index = choice.get("index") or 0
        known = self._choices.setdefault(index, {"index": index, "message": {"role": "assistant", "content": None}, "finish_reason": None})
        _merge(known["message"], choice.get("delta") or {})
        for name, value in choice.items():
            if name == "logprobs":
                known["logprobs"] = _merged(known.get("logprobs"), value)
            elif name not in ("delta", "message", "index") and value is not None:
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
        replaced = name in _REPLACED and isinstance(value, str)
        into[name] = (value or known) if replaced else _merged(known, value)


def _merged(known: Any, value: Any) -> Any:
    if isinstance(value, list):
        return _merge_list(known if isinstance(known, list) else [], value)
    if value is None or known is None:
        return known if value is None else value
    if isinstance(value, str) and isinstance(known, str):
        return known + value
    if isinstance(value, dict) and isinstance(known, dict):
        _merge(known, value)
        return known
    return value


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
