"""Who may ask: the keys of clients in GATEWAY_API_KEYS_FILE, and a door before the paths that clients use."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import time

from loguru import logger
from starlette.types import ASGIApp, Receive, Scope, Send

from errors import error_object
from gateway.keyfile import digests_in
from gateway.problem import Problem

LOOK_EACH_S = 1.0
_GUARDED = ("/v1/", "/api/")
_HEADERS = {"WWW-Authenticate": "Bearer"}


class Keys:
    """The keys in a file, read anew once it changes. Raises ValueError, OSError where there are none to begin with."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen, self._looked_s = _stamp(path), time.monotonic()  # first: a change behind it is then seen
        self._digests = digests_in(path)

    def admit(self, key: bytes) -> bool:
        """Takes the same time for each key that is none of them."""
        self._look()
        digest = hashlib.sha256(key).digest()
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return found

    def _look(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_EACH_S:
            return
        self._looked_s = now_s
        stamp = _stamp(self._path)
        if stamp != self._seen:
            self._seen = stamp
            self._read()

    def _read(self) -> None:
        """A file that cannot be read as a whole changes nothing: half of it may be a key that was taken back."""
        try:
            self._digests = digests_in(self._path)
        except (OSError, ValueError) as why:
            logger.error("GATEWAY_API_KEYS_FILE was changed and cannot be read, so the keys of before hold: {}", why)
        else:
            logger.info("GATEWAY_API_KEYS_FILE was changed: {} keys", len(self._digests))


class KeyDoor:
    """ASGI middleware. Nodes' paths and /health need no key: the first take answers to ids only that nobody can guess."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(_GUARDED):
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Problem | None:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        bearer = re.fullmatch(rb"(?i:bearer) +(\S+) *", given)
        if bearer is None:
            words = "You didn't provide an API key. Provide it in an Authorization header: Authorization: Bearer YOUR_KEY"
            return Problem(error_object(words, "invalid_request_error"), 401, _HEADERS)
        if not self._keys.admit(bearer[1]):
            return Problem(error_object("Incorrect API key provided.", "invalid_request_error", "invalid_api_key"), 401, _HEADERS)
        return None


def _stamp(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)  # of what a link leads to: Kubernetes turns one when a Secret changes
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino
