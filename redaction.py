"""What must not leave the node in words: keys and tokens for nobody, addresses of its network for no requester."""

from __future__ import annotations

import re

# Prefixes of keys with at least one figure or mask behind them, as in sk-ab***xyz; a masked key of any other form; a token
# behind its scheme; a JWT, as Pulsar's tokens are. Bounds keep a long line from taking quadratic time.
_KEY_LIKE = re.compile(
    r"\b(?:sk|pk|rk|gsk|xai|hf|key|pplx|nvapi)[-_](?=[\w.*-]{0,100}[0-9*])[\w.*-]{5,}[\w*-]"
    r"|(?<![\w-])[\w-]+\*{4,}[\w-]*|(?<!\*)\*{8,}[\w-]+"
    r"|\b(?:bearer|basic)\s+(?=[\w.~+/*-]{0,100}[0-9*])[\w.~+/*-]{6,}=*|\bbearer\s+[\w.~+/*-]{16,}=*"
    r"|\beyJ[\w-]{8,}(?:\.[\w-]+){1,2}"
    r"|(?<=://)[^\s/@\"'<>]{1,300}(?=@)",  # who a URL logs in as
    re.ASCII | re.IGNORECASE,
)
# Addresses of private networks (RFC 1918, 6598, 3927, 4193), names that only a private network resolves, and a bare name where
# a host stands. With their ports.
_INTERNAL = re.compile(
    r"(?:(?<![\d.])(?:(?:10|127|0)(?:\.\d{1,3}){3}|(?:169\.254|192\.168|172\.(?:1[6-9]|2\d|3[01])"
    r"|100\.(?:6[4-9]|[7-9]\d|1[01]\d|12[0-7]))(?:\.\d{1,3}){2})(?!\d|\.\d)"
    r"|(?<![\w:])(?:::1|(?:f[cd][0-9a-f]{2}|fe[89ab][0-9a-f]):[0-9a-f:]{0,40}[0-9a-f])(?!\w|:\w)"
    r"|(?<![\w.-])(?:[\w-]{1,63}\.){1,30}(?:svc(?:\.[\w-]{1,63}){0,5}|internal|local|localdomain|lan|intranet|corp|home\.arpa)(?!\.?[\w-])"
    r"|(?:(?<=://)|(?<=\]@)|(?<=host=')|(?<=to host ))[\w-]{1,63}(?![\w-]|\.\w)|(?<![\w.-])localhost(?=:\d))"
    r"(?:\]?:\d{1,5}\b)?",
    re.ASCII | re.IGNORECASE,
)
_LONGEST_FOUND = 1000


def redact(text: str, secrets: tuple[str, ...] = ()) -> str:
    """`text` without the given secrets and without anything shaped like a key (upstreams echo parts of it)."""
    return _KEY_LIKE.sub("[redacted]", _without(text, secrets))


def public(text: str, secrets: tuple[str, ...], limit: int) -> str:
    """What a requester may read, cut to `limit` characters last: of a part of a key or address it could not be told what it is."""
    near = _without(text, secrets)[: limit + _LONGEST_FOUND]  # patterns are slow on megabytes
    return _INTERNAL.sub("[internal address]", redact(near))[:limit]


def _without(text: str, secrets: tuple[str, ...]) -> str:
    for secret in sorted(filter(None, secrets), key=len, reverse=True):  # one may be the beginning of another
        text = text.replace(secret, "[redacted]")
    return text
