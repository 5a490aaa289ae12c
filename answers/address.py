"""Where an answer goes."""

from __future__ import annotations

import msgspec

from answers.post import EARLY_GRACE_S


class Address(msgspec.Struct, frozen=True):
    """Times are monotonic seconds; `link` is "" where the gateway offers none."""

    request_id: str
    stream: bool
    endpoint: str
    received_at_s: float
    deadline_at_s: float
    attempt: int
    link: str = ""

    @property
    def early_until_s(self) -> float:
        """Of whatever attempt: the first may have died within milliseconds."""
        return self.received_at_s + EARLY_GRACE_S
