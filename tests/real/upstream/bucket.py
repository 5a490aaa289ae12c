"""A rate limit as OpenAI has it: token buckets of requests and of tokens that fill continuously, told in every answer."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

from tests.real.upstream.ask import Ask, Reply


@dataclass
class Bucket:
    """`limit` a minute, `burst` at most at once; full at first. Times are the caller's, in seconds."""

    limit: float
    burst: float
    level: float = field(init=False)
    filled_at_s: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.burst

    def fill(self, now_s: float) -> None:
        self.level = min(self.burst, self.level + self.limit / 60 * (now_s - self.filled_at_s))
        self.filled_at_s = now_s

    def wait_s(self, amount: float) -> float:
        return max(0.0, (amount - self.level) * 60 / self.limit)


@dataclass
class Limits:
    """`headers`: whether answers tell of it; a refusal always tells how long to wait."""

    buckets: dict[str, Bucket]
    headers: bool = True

    def refusal(self, ask: Ask, now_s: float) -> Reply | None:
        """None: it is let in, and has been taken off."""
        amounts = {"requests": 1.0, "tokens": float(_tokens(ask))}
        for what, bucket in self.buckets.items():
            bucket.fill(now_s)
            if amounts[what] > bucket.level:
                return self._refused(what, bucket, amounts[what], ask)
        for what, bucket in self.buckets.items():
            bucket.level -= amounts[what]
        return None

    def told(self) -> dict[str, str]:
        found = {}
        for what, bucket in self.buckets.items() if self.headers else ():
            found[f"x-ratelimit-limit-{what}"] = f"{bucket.limit:.0f}"
            found[f"x-ratelimit-remaining-{what}"] = f"{math.floor(max(0.0, bucket.level)):.0f}"
            found[f"x-ratelimit-reset-{what}"] = _go_duration(bucket.wait_s(bucket.burst))
        return found

    def _refused(self, what: str, bucket: Bucket, amount: float, ask: Ask) -> Reply:
        wait_s, unit = bucket.wait_s(amount), {"requests": "RPM", "tokens": "TPM"}[what]
        limit = f"Limit {bucket.limit:.0f}, Used {bucket.limit - bucket.level:.0f}, Requested {amount:.0f}"
        message = f"Rate limit reached for {ask.body.get('model')} on {what} per min ({unit}): {limit}. Please try again in {wait_s:.3f}s."
        error = {"error": {"message": message, "type": what, "param": None, "code": "rate_limit_exceeded"}}
        waits = {"retry-after": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(1000 * wait_s))}
        return Reply(json.dumps(error).encode(), 429, {**waits, **self.told()})


def _tokens(ask: Ask) -> int:
    """As OpenAI counts before: the prompt, by its length, and all that may be answered."""
    characters = sum(len(str(m.get("content", ""))) for m in ask.body.get("messages") or [] if isinstance(m, dict))
    most = ask.body.get("max_completion_tokens") or ask.body.get("max_tokens") or 16
    return characters // 4 + int(most)


def _go_duration(seconds: float) -> str:
    """`6m0s`, `1.5s`, `12ms`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    return f"{int(seconds // 60)}m{seconds % 60:.3f}s" if seconds >= 60 else f"{seconds:.3f}s"
