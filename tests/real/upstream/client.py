"""The test upstream in a process of its own, as tests use it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

from tests.real.processes import end_group, free_port, start_bound, wait_until


class Upstream:
    """`with Upstream() as upstream:` or `start` and `stop`. options: as the command line's, `Upstream(key="sk-…")`."""

    def __init__(self, **options: str | int | float) -> None:
        self._options = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> Upstream:
        """On any free port at first, on the same one afterwards."""
        port = self.url.rpartition(":")[2] or str(free_port())
        command = [sys.executable, "-m", "tests.real.upstream", "--port", port, *self._options]
        self._process = start_bound(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        with self._process.stdout as printed:
            self.url = printed.readline().decode().strip()
        if not self.url:
            raise RuntimeError(f"the test upstream did not start on port {port}")
        return self

    def stop(self) -> None:
        """SIGKILL: from then on connections are refused."""
        if self._process is not None:
            end_group(self._process, signal.SIGKILL)
            self._process = None

    @property
    def exit_status(self) -> int | None:
        return self._process.poll() if self._process else None

    def __enter__(self) -> Upstream:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stats(self) -> dict[str, int]:
        """received, in_flight, peak_in_flight, answered, failed, cancelled, limited, connections, prompt_tokens, completion_tokens."""
        found: dict[str, int] = self._ask("GET", "/stats")
        return found

    def requests(self) -> list[dict[str, Any]]:
        """The last 200 completions asked for, oldest first: path, headers (names in lower case), body, behaviour."""
        found: list[dict[str, Any]] = self._ask("GET", "/requests")
        return found

    def reset(self) -> None:
        """Statistics, requests and the counts of `times` begin anew."""
        self._ask("DELETE", "/stats")

    def everybody(self, behaviour: str) -> None:
        """From now on all requests are answered so, and /models with the same HTTP error; "" ends it."""
        self._ask("PUT", "/everybody", {"behaviour": behaviour})

    def wait_for(self, check: Callable[[dict[str, int]], bool], within_s: float = 10.0) -> dict[str, int]:
        """The statistics, once `check` holds for them."""
        latest: dict[str, int] = {}

        def checked() -> dict[str, int] | None:
            latest.update(self.stats())
            return latest if check(latest) else None

        try:
            return wait_until(checked, within_s=within_s, what="wanted statistics of the upstream")
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {latest}") from None

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data, method=method), timeout=10) as answer:
            return json.loads(answer.read())
