"""Whole answers: POST to the endpoint, over kept connections."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import SplitResult, urlsplit

from answers.dial import CONNECT_TIMEOUT_S, Dialer
from answers.endpoint import NotDelivered, Refused, RequesterUnknown, http_url, is_final
from net.http11 import Answer, Connection, Connections, post_head

TAKEN_WITHIN_S = 10.0  # the whole POST, from its connection to the status
EARLY_GRACE_S = 1.0  # the requester's service registers an id only after its publish was confirmed
MAX_BODY_BYTES = 64 << 10
SAID_WITHIN_S = 0.3  # behind the status, else the connection is not used again
MAX_PLACES = 64
_PORTS = {"http": 80, "https": 443}
_FIRST_PAUSE_S = 0.02


class Poster:
    """`most_rested`: how many connections to one endpoint are kept."""

    def __init__(self, most_rested: int, dialer: Dialer) -> None:
        self._dialer, self._most_rested = dialer, most_rested
        self._places: dict[tuple[str, str], Connections] = {}

    async def post(self, endpoint: str, body: bytes, *, early_until_s: float) -> None:
        """Returns when the answer was taken. `early_until_s`: monotonic; until then a 404 may mean that the request
        is not registered yet. Raises RequesterUnknown, Refused (NotAllowed too), NotDelivered."""
        pause_s = _FIRST_PAUSE_S
        while (status := await self._post_once(endpoint, body)) == 404:
            if time.monotonic() + pause_s > early_until_s:
                raise RequesterUnknown(f"{endpoint} does not know the request")
            await asyncio.sleep(pause_s)
            pause_s *= 1.5
        if is_final(status):
            raise Refused(f"{endpoint} refuses the answer with status {status}")
        if status != 200:
            raise NotDelivered(f"{endpoint} answered the POST with status {status}")

    async def _post_once(self, endpoint: str, body: bytes) -> int:
        """The status."""
        try:
            parts = urlsplit(http_url(endpoint))
            if parts.scheme not in _PORTS or not parts.hostname or not parts.netloc.isascii():
                raise ValueError("it should be an address of HTTP or WebSocket")
            head, rested = post_head(parts, {}), self._rested_to(parts)
            async with asyncio.timeout(TAKEN_WITHIN_S):
                connection = rested.take() or await self._connected(parts.hostname, parts)
                answer = await connection.answer(head, body, time.monotonic() + TAKEN_WITHIN_S)
        except TimeoutError:
            raise NotDelivered(f"{endpoint}: it did not take the answer within {TAKEN_WITHIN_S:g} s") from None
        except (OSError, ValueError) as error:  # ValueError: no address at all
            raise NotDelivered(f"{endpoint}: {type(error).__name__}: {error}") from None
        try:
            await _dispose(answer)
        finally:
            rested.give_back(connection)
        return answer.status

    async def _connected(self, host: str, parts: SplitResult) -> Connection:
        port = parts.port or _PORTS[parts.scheme]
        try:
            return await self._dialer.connect(Connection, host, port, tls=parts.scheme == "https")
        except TimeoutError:
            raise NotDelivered(f"{parts.netloc}: no connection within {CONNECT_TIMEOUT_S:g} s") from None

    def _rested_to(self, parts: SplitResult) -> Connections:
        key = (parts.scheme, parts.netloc)
        found = self._places.pop(key, None) or Connections(self._most_rested)
        self._places[key] = found  # the latest last
        if len(self._places) > MAX_PLACES:
            self._places.pop(next(iter(self._places))).close()
        return found


async def _dispose(answer: Answer) -> None:
    """What an endpoint says beside its status is of no interest, and it may say it for ever."""
    by_s, left_bytes = time.monotonic() + SAID_WITHIN_S, MAX_BODY_BYTES
    try:
        while left_bytes > 0 and (piece := await answer.read_some(by_s)):
            left_bytes -= len(piece)
    except OSError:
        return

