"""Whole answers: POST to the endpoint, over kept connections."""

from __future__ import annotations

import time

import urllib3
from urllib3.exceptions import HTTPError

from answers.endpoint import NotDelivered, Refused, RequesterUnknown, http_url

CONNECT_TIMEOUT_S = 5.0
TAKEN_WITHIN_S = 10.0
EARLY_GRACE_S = 1.0  # the requester's service registers an id only after its publish was confirmed
MAX_BODY_BYTES = 64 << 10
_FIRST_PAUSE_S = 0.02
_PASSING = (408, 425, 429)


class Poster:
    """Shared by a child's threads; `threads` is how many may post to one endpoint at once over kept connections."""

    def __init__(self, threads: int, ca_bundle: str | None) -> None:
        self._pools = urllib3.PoolManager(
            num_pools=64, maxsize=threads, block=False, retries=False, ca_certs=ca_bundle,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=TAKEN_WITHIN_S),
        )

    def post(self, endpoint: str, body: bytes, *, early_until_s: float) -> None:
        """Returns when the answer was taken. `early_until_s`: monotonic; until then a 404 may mean that the request
        is not registered yet. Raises RequesterUnknown, Refused, NotDelivered."""
        pause_s = _FIRST_PAUSE_S
        while (status := self._post_once(endpoint, body)) == 404:
            if time.monotonic() + pause_s > early_until_s:
                raise RequesterUnknown(f"{endpoint} does not know the request")
            time.sleep(pause_s)
            pause_s *= 1.5
        if 400 <= status < 500 and status not in _PASSING:
            raise Refused(f"{endpoint} refuses the answer with status {status}")
        if status != 200:
            raise NotDelivered(f"{endpoint} answered the POST with status {status}")

    def _post_once(self, endpoint: str, body: bytes) -> int:
        """The status; the body is read as far as it takes to use the connection again."""
        give_up_at_s = time.monotonic() + TAKEN_WITHIN_S
        try:
            url, headers = http_url(endpoint), {"Content-Type": "application/json"}
            answer = self._pools.request("POST", url, body=body, headers=headers, redirect=False, preload_content=False)
        except (HTTPError, OSError, ValueError) as error:
            raise NotDelivered(f"{endpoint}: {type(error).__name__}: {error}") from None
        self._dispose(answer, give_up_at_s)
        return answer.status

    @staticmethod
    def _dispose(answer: urllib3.BaseHTTPResponse, give_up_at_s: float) -> None:
        """What an endpoint says beside its status is of no interest, and it may say it for ever."""
        read_bytes = 0
        try:
            while piece := answer.read1(MAX_BODY_BYTES):
                read_bytes += len(piece)
                if read_bytes > MAX_BODY_BYTES or time.monotonic() > give_up_at_s:
                    answer.close()
                    return
            answer.release_conn()
        except (HTTPError, OSError, ValueError):
            answer.close()
