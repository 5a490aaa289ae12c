"""Reading a request's body, bounded in bytes and in time."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from gateway.problem import invalid, too_large

READ_TIMEOUT_S = 60.0


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """Raises Problem: 413 over the limit, 408 where the body does not come. Raises ClientDisconnect."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit_bytes:
        raise too_large("The body", limit_bytes)
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await _read(request, limit_bytes)
    except TimeoutError:
        raise invalid(f"The body did not come within {READ_TIMEOUT_S:g} s.", "timeout", status=408) from None


async def _read(request: Request, limit_bytes: int) -> bytes:
    pieces = []
    size_bytes = 0
    async for piece in request.stream():
        size_bytes += len(piece)
        if size_bytes > limit_bytes:
            raise too_large("The body", limit_bytes)
        pieces.append(piece)
    return b"".join(pieces)
