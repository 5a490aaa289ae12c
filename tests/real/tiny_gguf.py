"""A model of half a megabyte in llama.cpp's format, made by hand: it loads in milliseconds and talks in endless circles.

`python -m tests.real.tiny_gguf FILE`. Its weights are a table: after each word comes the next one of TEXT. Every layer adds
nothing (its output matrices are zero), so that what it says depends on the last word alone.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable
from pathlib import Path

TEXT = "the node reads a request and the model writes an answer so that"
CONTEXT_TOKENS = 512
UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
HEAD = 32
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"

_UINT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _INT32 = 4, 6, 7, 8, 9, 5
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_F32, _F16 = 0, 1  # vectors and matrices: llamafile 0.8.1 fails on matrices of the first kind
_ALIGNED = 32


def tokens() -> list[tuple[str, int]]:
    """Words, single characters and bytes, each with its kind."""
    words = list(dict.fromkeys("▁" + word for word in TEXT.split()))
    special = [(UNKNOWN, _UNKNOWN), (BEGIN, _CONTROL), (END, _CONTROL)]
    singles = [chr(code) for code in range(33, 127)] + ["▁"]
    return special + [(f"<0x{byte:02X}>", _BYTE) for byte in range(256)] + [(t, _NORMAL) for t in [*singles, *words]]


def write(path: Path, context: int = CONTEXT_TOKENS) -> Path:
    vocabulary = tokens()
    names = [name for name, _ in vocabulary]
    order = ["▁" + word for word in TEXT.split()]
    width = 2 * HEAD  # a dimension for each place in the text, and one for everything else; llamafile 0.8.1 fails on HEAD
    embedding, output = _table(names, order, width)
    tensors = {"token_embd.weight": (width, len(names), embedding), "output.weight": (width, len(names), output)} | _layer(width)
    fields = {
        "general.architecture": (_STRING, "llama"), "general.name": (_STRING, "tiny"), "llama.context_length": (_UINT32, context),
        "llama.embedding_length": (_UINT32, width), "llama.block_count": (_UINT32, 1), "llama.feed_forward_length": (_UINT32, HEAD),
        "llama.attention.head_count": (_UINT32, width // HEAD), "llama.attention.head_count_kv": (_UINT32, width // HEAD),
        "llama.rope.dimension_count": (_UINT32, HEAD), "llama.attention.layer_norm_rms_epsilon": (_FLOAT32, 1e-5),
        "llama.vocab_size": (_UINT32, len(names)), "tokenizer.ggml.model": (_STRING, "llama"),
        "tokenizer.ggml.tokens": (_ARRAY, (_STRING, names)), "tokenizer.ggml.scores": (_ARRAY, (_FLOAT32, [_score(n) for n in names])),
        "tokenizer.ggml.token_type": (_ARRAY, (_INT32, [kind for _, kind in vocabulary])),
        "tokenizer.ggml.bos_token_id": (_UINT32, 1), "tokenizer.ggml.eos_token_id": (_UINT32, 2),
        "tokenizer.ggml.unknown_token_id": (_UINT32, 0),
        "tokenizer.ggml.add_bos_token": (_BOOL, True), "tokenizer.chat_template": (_STRING, TEMPLATE),
    }  # fmt: skip
    path.write_bytes(_file(fields, tensors))
    return path


def _score(name: str) -> float:
    return -1.0 if name.startswith("▁") and len(name) > 1 else -20.0


def _table(names: list[str], order: list[str], width: int) -> tuple[array[float], array[float]]:
    """Where each token is in the text, and what comes after that place: the last word of all is followed by the first."""
    embedding, output = array("f", bytes(4 * width * len(names))), array("f", [-30.0]) * (width * len(names))
    for row, name in enumerate(names):
        place = order.index(name) if name in order else len(order)
        embedding[row * width + place] = 1.0
    for place, following in enumerate([*order[1:], order[0], order[0]]):
        output[names.index(following) * width + place] = 0.0
    return embedding, output


def _layer(width: int) -> dict[str, tuple[int, int, array[float]]]:
    """Attention looks somewhere and the network computes something, of which nothing comes out."""
    ones, nothing = (width, 0, array("f", [1.0]) * width), (width, width, array("f", bytes(4 * width * width)))
    inward, outward = (width, HEAD, _small(width * HEAD)), (HEAD, width, array("f", bytes(4 * width * HEAD)))
    norms = {f"{name}.weight": ones for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")}
    attention = {f"blk.0.attn_{name}.weight": (width, width, _small(width * width)) for name in "qkv"}
    network = {"blk.0.ffn_gate.weight": inward, "blk.0.ffn_up.weight": inward, "blk.0.ffn_down.weight": outward}
    return norms | attention | {"blk.0.attn_output.weight": nothing} | network


def _small(count: int) -> array[float]:
    return array("f", [(n * 7919 % 101 - 50) / 1000 for n in range(count)])


def _file(fields: dict[str, tuple[int, object]], tensors: dict[str, tuple[int, int, array[float]]]) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    head += b"".join(_string(name) + struct.pack("<I", kind) + _value(kind, value) for name, (kind, value) in fields.items())
    body = bytearray()
    for name, (columns, rows, data) in tensors.items():
        shape = [columns, rows] if rows else [columns]
        kind, letter = (_F16, "e") if rows else (_F32, "f")
        head += _string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, len(body))
        body += struct.pack(f"<{len(data)}{letter}", *data)
        body += bytes(-len(body) % _ALIGNED)
    return head + bytes(-len(head) % _ALIGNED) + bytes(body)


def _value(kind: int, value: object) -> bytes:
    if kind == _STRING:
        return _string(str(value))
    if kind == _ARRAY:
        assert isinstance(value, tuple)
        each, items = value
        return struct.pack("<IQ", each, len(items)) + _joined(each, items)
    return struct.pack({_UINT32: "<I", _INT32: "<i", _FLOAT32: "<f", _BOOL: "<?"}[kind], value)


def _joined(kind: int, items: Iterable[object]) -> bytes:
    return b"".join(_value(kind, item) for item in items)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


if __name__ == "__main__":
    write(Path(sys.argv[1]))
