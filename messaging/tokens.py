"""The token for Pulsar, as it is now: whoever rotates it changes PULSAR_TOKEN_FILE under a running node."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from config import Settings


def current_token(settings: Settings) -> str:
    """What the file holds; the token of the start where there is no such file, or no token in it, as for a moment in a
    rotation. Never raises: it is called from the Pulsar client's threads."""
    found = _read(settings.pulsar_token_file) if settings.pulsar_token_file else ""
    return found if re.fullmatch(r"[\x21-\x7e]+", found) else settings.pulsar_token


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
