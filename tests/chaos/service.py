"""The requesters' own service, as the existing one behaves: an id is known until it is answered, and then forgotten."""

from __future__ import annotations

import contextlib
import json

from tests.chaos.ledger import Ledger
from tests.real.requester import Requester


class Service(Requester):
    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def knows(self, request_id: str) -> bool:
        return self._ledger.knows(request_id)

    def _status_of(self, body: bytes) -> int:
        status = super()._status_of(body)
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found = json.loads(body)
            if status == 404:
                self._ledger.refused_post(found["request_id"])
            elif status == 200 and not self._ledger.post(found["request_id"], found["data"]):
                return 404
        self._posts.clear()
        return status

    def took(self, text: bytes, number: int) -> None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            frame = json.loads(text)
            self._ledger.frame(frame["request_id"], frame)
