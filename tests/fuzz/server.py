"""An upstream that answers each request with the bytes that its case says, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading

from tests.fuzz.answers import Answer, Case

_NUMBER = re.compile(rb'"fuzz":([0-9]+)')
_LENGTH = re.compile(rb"content-length: *([0-9]+)", re.IGNORECASE)
HANG_S = 20.0


class Server:
    """`with Server() as server:`; cases: by their numbers, to be put in before they are asked for."""

    def __init__(self) -> None:
        self.cases: dict[int, Case] = {}
        self.overtaken = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fuzz-server", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._listening.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self._converse, "127.0.0.1", 0, backlog=512))
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        self._loop.run_forever()
        server.close()
        for left in asyncio.all_tasks(self._loop):
            left.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort() if writer.transport.is_closing() else writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        found = _LENGTH.search(head)
        body = await reader.readexactly(int(found[1])) if found else b""
        number = _NUMBER.search(body)
        assert number is not None, body
        asked = self.cases.get(int(number[1]))
        if asked is None:
            # Its outcome is known before it was read here: bytes that an answer of a wrong length left behind came as it
            # was being sent, and were taken for its own. HTTP/1.1 cannot tell; the checks see what was made of them.
            self.overtaken += 1
            return False
        answer = asked.answer
        for pause_s, piece in answer.pieces:
            if pause_s:
                await asyncio.sleep(pause_s)
            writer.write(piece)
            await writer.drain()
        return await _ended(answer, reader, writer)


async def _ended(answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Whether another request may come on this connection."""
    if answer.how == "reset":
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    if answer.how == "hang":
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.read(1), HANG_S)
    return answer.how == "keep"
