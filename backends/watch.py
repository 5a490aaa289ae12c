"""Whether a model server that runs also serves: it may be stopped, refuse, answer errors only, or hang."""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

import urllib3

from limits.processes import is_stopped

LOOK_EACH_S = 0.2
IN_A_ROW = 2  # looks that find the same: one alone may be chance
LOOK_TIMEOUT_S = 1.0
ASK_TIMEOUT_S = 20.0  # it may have to wait for a slot
HANGS_AFTER_S = 30.0  # without a word on /health and without any output: a long prompt on a slow machine is no hanging
PIDS_AGAIN_AFTER_S = 10.0
QUESTION = {"messages": [{"role": "user", "content": "ping"}], "max_tokens": 1}


class Watched(Protocol):
    """What is asked of a model server."""

    base_url: str

    def pids(self) -> list[int]: ...

    def health(self, timeout_s: float) -> int:
        """The HTTP status; 0: nobody listens, -1: no answer in time."""


class Watch:
    """`look` again and again, on one thread. Requests tell of their output, and of failures that were not their own.

    A failed request is followed by one of our own, of one token: where that fails too, the server serves nobody."""

    def __init__(self, server: Watched, model: str) -> None:
        self._server, self._model = server, model
        self._http = urllib3.PoolManager(retries=False)
        self._pids: list[int] = []
        self._pids_at_s = float("-inf")
        self._looked_s = float("-inf")
        self._found: list[str] = []  # by the latest looks
        self._heard_s = time.monotonic()
        self._asking: threading.Thread | None = None
        self._doubts = self._settled = 0  # how many there were, and how many of them are answered
        self._answers_errors = ""

    def saw_output(self) -> None:
        self._heard_s = time.monotonic()

    def doubt(self) -> int:
        """A request failed as if it were the server's fault. Returned: what to ask `is_settled` for."""
        self._doubts += 1
        return self._doubts

    def is_settled(self, doubt: int) -> bool:
        """Whether the server was found to serve since."""
        return self._settled >= doubt

    def look(self) -> str:
        """What is wrong with it, "" while nothing is known to be."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_EACH_S:
            return ""
        self._looked_s = now_s
        self._ask_if_doubted()
        if self._answers_errors:
            return self._answers_errors
        self._found = [*self._found, self._look()][-IN_A_ROW:]
        return self._found[-1] if len(self._found) == IN_A_ROW and all(self._found) else ""

    def _look(self) -> str:
        if any(is_stopped(pid) for pid in self._known_pids()):
            return "it is stopped (SIGSTOP), and does nothing"
        status = self._server.health(LOOK_TIMEOUT_S)
        if status == 0:
            return "it runs, and refuses connections"
        if status >= 500:
            return f"it runs, and answers with status {status} when asked for its health"
        if status > 0:
            self._heard_s = time.monotonic()
            return ""
        silent_s = time.monotonic() - self._heard_s
        return "it hangs: it neither answers nor puts anything out" if silent_s > HANGS_AFTER_S else ""

    def _known_pids(self) -> list[int]:
        """Finding them walks all of /proc."""
        if time.monotonic() - self._pids_at_s > PIDS_AGAIN_AFTER_S:
            self._pids, self._pids_at_s = self._server.pids(), time.monotonic()
        return self._pids

    def _ask_if_doubted(self) -> None:
        """Apart from the looks: an answer may take its time."""
        if self._doubts > self._settled and (self._asking is None or not self._asking.is_alive()):
            self._asking = threading.Thread(target=self._ask, args=(self._doubts,), name="model-doubt", daemon=True)
            self._asking.start()

    def _ask(self, doubt: int) -> None:
        asked_s = time.monotonic()
        try:
            url, body = f"{self._server.base_url}/chat/completions", {"model": self._model, **QUESTION}
            answer: Any = self._http.request("POST", url, json=body, timeout=ASK_TIMEOUT_S)
        except urllib3.exceptions.TimeoutError:
            if self._heard_s < asked_s:
                self._answers_errors = "it hangs: it answers no request"
            self._settled = doubt  # others have their answers: it is busy
        except urllib3.exceptions.HTTPError as error:
            self._answers_errors = f"it runs, and breaks off each request ({type(error).__name__})"
        else:
            if answer.status >= 500:
                self._answers_errors = f"it runs, and answers each request with status {answer.status}"
                return
            self._settled = doubt
