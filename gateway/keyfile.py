"""The form of GATEWAY_API_KEYS_FILE: a key a line, as it is or as `sha256:` and 64 hexadecimal figures; `#` begins a comment."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

SHORTEST_KEY = 16


def digests_in(path: str) -> list[bytes]:
    """SHA-256 of each key. Raises OSError, and ValueError that names the line, never what is on it."""
    found = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        words = re.sub(r"(^|\s)#.*", "", line).strip()
        if words:
            found.append(_digest(words, number))
    if not found:
        raise ValueError("it holds no key")
    return found


def _digest(words: str, number: int) -> bytes:
    if words.startswith("sha256:"):
        if not re.fullmatch(r"sha256:[0-9a-fA-F]{64}", words):
            raise ValueError(f"line {number}: sha256: wants 64 hexadecimal figures behind it")
        return bytes.fromhex(words.removeprefix("sha256:"))
    if not re.fullmatch(r"[\x21-\x7e]+", words):
        raise ValueError(f"line {number}: a key is printable ASCII without blanks")
    if len(words) < SHORTEST_KEY:
        raise ValueError(f"line {number}: a key of fewer than {SHORTEST_KEY} characters can be guessed")
    return hashlib.sha256(words.encode()).digest()
