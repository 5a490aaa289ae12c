"""Trying the upstream on nobody's behalf: is a trouble there, still there, or was it one request's alone?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from backends.base import Account, Backend, Call
from backends.transport import UpstreamFailed
from errors import Scope, error_object, verdict
from ipc.messages import Probed

if TYPE_CHECKING:
    from config import Settings

_QUESTION = b'{"messages":[{"role":"user","content":"ping"}],"max_tokens":1}'


class _Nobody:
    """Takes an answer that only has to come."""

    def put(self, data: bytes) -> bool:
        return True

    async def chunk(self, data: bytes) -> None:
        return

    def whole(self, data: bytes) -> None:
        return


async def probe(backend: Backend, settings: Settings, asks: bool) -> Probed:
    """Never raises. A request that is refused as such found an upstream that serves this node."""
    try:
        if asks:
            patience_s = settings.connect_timeout_s + settings.first_token_timeout_s
            call = Call(_QUESTION, stream=False, deadline_at_s=time.monotonic() + patience_s)
            await backend.answer(call, _Nobody(), Account())
        else:
            await backend.reach()
    except UpstreamFailed as failed:
        judged = verdict(failed.failure, settings.secrets)
        return Probed() if judged.scope is Scope.REQUEST else Probed(judged.error, judged.reason)
    except Exception as bug:
        return Probed(error_object(f"The node could not try its upstream ({type(bug).__name__}: {bug}).", "server_error", "node_error"))
    return Probed()
