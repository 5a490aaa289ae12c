"""What a request said and what it was answered, in the log of DEBUG=true: redacted, and cut where it is long."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from loguru import logger

from backends.chunks import Assembler, Garbled
from reporting.log import body_text

if TYPE_CHECKING:
    from backends.base import Sink
    from config import Settings


class Overheard:
    """A sink that passes everything on, and says at the end what it was. A stream is said as one completion: a key that
    comes in pieces could not be taken out of its chunks."""

    def __init__(self, sink: Sink, settings: Settings, request_id: str) -> None:
        self._sink, self._secrets, self._request_id = sink, settings.secrets, request_id
        self._whole = b""
        self._chunks: Assembler | None = None

    def put(self, data: bytes) -> bool:
        return False

    async def chunk(self, data: bytes) -> None:
        self._chunks = self._chunks or Assembler()
        with contextlib.suppress(Garbled):  # it is not for the log to end an answer
            self._chunks.add(data)
        await self._sink.chunk(data)

    def whole(self, data: bytes) -> None:
        self._whole = data
        self._sink.whole(data)

    def asked(self, body: bytes) -> None:
        logger.debug("request {} asks: {}", self._request_id, body_text(body, self._secrets))

    def say(self) -> None:
        """What came, though it may not be all."""
        try:
            answer = self._chunks.completion() if self._chunks else self._whole
        except Garbled as error:
            answer = str(error).encode()
        if answer:
            logger.debug("request {} was answered: {}", self._request_id, body_text(answer, self._secrets))
