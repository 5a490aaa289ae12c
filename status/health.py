"""/livez and /readyz: whether the supervisor's loop turns, and whether the node takes requests."""

from __future__ import annotations

import time

from loguru import logger

STANDS_STILL_AFTER_S = 15.0  # the loop turns each second at least


class Health:
    """`tell` comes from the loop, each turn; `look` from any thread."""

    def __init__(self) -> None:
        self._why_not_ready = "starting"
        self._told_s = time.monotonic()

    def tell(self, why_not_ready: str) -> None:
        """`why_not_ready`: "" while the node takes requests."""
        if why_not_ready != self._why_not_ready:
            logger.debug("readiness: {}", why_not_ready or "ready")
        self._why_not_ready, self._told_s = why_not_ready, time.monotonic()

    @property
    def why_not_alive(self) -> str:
        silent_s = time.monotonic() - self._told_s
        return f"the supervisor's loop has stood still for {silent_s:.0f} s" if silent_s > STANDS_STILL_AFTER_S else ""

    @property
    def why_not_ready(self) -> str:
        """Readiness is also lost by a loop that stands still."""
        return self.why_not_alive or self._why_not_ready

    def look(self, path: str) -> tuple[int, dict[str, str]]:
        """The HTTP status and the body for /livez or /readyz."""
        word, trouble = ("not ready", self.why_not_ready) if path == "/readyz" else ("stuck", self.why_not_alive)
        return (503, {"status": word, "why": trouble}) if trouble else (200, {"status": "ok"})
