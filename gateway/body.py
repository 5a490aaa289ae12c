"""Reading a request's body, bounded in bytes and in time."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from gateway.problem import invalid, too_large, unavailable

READ_TIMEOUT_S = 60.0
ROOM_BYTES = 256 * 1024 * 1024


class Room:
    """For bodies that are being read, all together: without a bound a few hundred slow ones take all memory."""

    def __init__(self, limit_bytes: int = ROOM_BYTES) -> None:
        self.left_bytes = limit_bytes

    def take(self, size_bytes: int) -> None:
        """Raises Problem."""
        if size_bytes > self.left_bytes:
            raise unavailable("Too many large requests are being read at once.", "server_is_overloaded", retry_after_s=1)
        self.left_bytes -= size_bytes

    def give_back(self, size_bytes: int) -> None:
        self.left_bytes += size_bytes


async def read_body(request: Request, limit_bytes: int, room: Room | None = None) -> bytes:
    """Raises Problem: 413 over the limit, 408 where the body does not come, 503 without room. Raises ClientDisconnect."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit_bytes:
        raise too_large("The body", limit_bytes)
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await _read(request, limit_bytes, room)
    except TimeoutError:
        raise invalid(f"The body did not come within {READ_TIMEOUT_S:g} s.", "timeout", status=408) from None


async def _read(request: Request, limit_bytes: int, room: Room | None) -> bytes:
    pieces: list[bytes] = []
    size_bytes = 0
    try:
        async for piece in request.stream():
            if size_bytes + len(piece) > limit_bytes:
                raise too_large("The body", limit_bytes)
            if room is not None:
                room.take(len(piece))
            size_bytes += len(piece)
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        if room is not None:
            room.give_back(size_bytes)
