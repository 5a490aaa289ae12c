"""What must hold of every request, whatever its upstream sent: an end that is legal, and nothing but OpenAI's JSON delivered.

The frame is OpenAI's: objects, choices, messages, deltas, errors. What stands in a message is the upstream's own.
"""

from __future__ import annotations

import json
from typing import Any

from errors import http_status
from ipc.messages import Begun, FromChild, Outcome
from tests.fuzz.answers import Case

REASONS = {"AuthenticationError", "ConfigurationError", "APIQuotaExceededError"}
NOTHING_DELIVERED = {"retry", "throttle", "trouble"}
ACCOUNTED = {"reported", "estimated", "none"}
SECRETS = ("10.0.0.7", "sk-abcdef1234567890")


class Wrong(Exception):
    """Something of it does not hold; its words say what."""


def must(holds: object, what: str) -> None:
    if not holds:
        raise Wrong(what)


def _no_constant(name: str) -> None:
    raise Wrong(f"{name} is no JSON")


def parsed(text: bytes) -> dict[str, Any]:
    """Strictly. The gateway puts it into one line of its stream."""
    must(b"\n" not in text and b"\r" not in text, "a line break in what was delivered")
    try:
        found = json.loads(text.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Wrong(f"not JSON: {error!r}: {text[:300]!r}") from None
    must(isinstance(found, dict), f"no object: {text[:300]!r}")
    return dict(found)


def check(case: Case, request_id: str, said: list[FromChild], delivered: list[bytes]) -> Outcome:
    """said: of this request by its child; delivered: posted bodies or frames, as they came. Raises Wrong."""
    (outcome,) = [message for message in said if isinstance(message, Outcome)]
    bodies = [parsed(text) for text in delivered]
    must(all(body["request_id"] == request_id for body in bodies), "another's id")
    _check_outcome(outcome)
    if outcome.end in NOTHING_DELIVERED:
        must(not bodies, f"delivered before {outcome.end}: {delivered}")
        must(not any(isinstance(message, Begun) for message in said), "begun, and yet to be tried again")
    elif case.stream:
        _check_stream(outcome, bodies)
    else:
        _check_whole(outcome, bodies)
    _check_expected(case, outcome, bodies)
    return outcome


def _check_outcome(outcome: Outcome) -> None:
    must(outcome.end in NOTHING_DELIVERED | {"answered", "failed"}, f"an end that cannot be: {outcome.end}")
    must((outcome.error is None) == (outcome.end == "answered"), "an error where none belongs, or none where one does")
    if outcome.error is not None:
        check_error(outcome.error)
    must((outcome.reason in REASONS) == (outcome.end == "trouble"), f"reason {outcome.reason} with {outcome.end}")
    must(outcome.wait_s is None or 0 < outcome.wait_s <= 120, f"wait of {outcome.wait_s} s")
    must(min(outcome.prompt_tokens, outcome.completion_tokens) >= 0 and outcome.tokens_source in ACCOUNTED, "odd tokens")
    must(outcome.upstream_model is None or len(outcome.upstream_model) <= 200, "a model's name that is none")


def check_error(error: Any) -> None:
    must(isinstance(error, dict) and set(error) == {"message", "type", "param", "code"}, f"no error object: {error}")
    must(isinstance(error["message"], str) and error["message"], "an error without words")
    must(isinstance(error["type"], str) and error["type"], "an error without type")
    must(error["param"] is None or isinstance(error["param"], str), "an odd param")
    must(error["code"] is None or type(error["code"]) in (str, int), "an odd code")
    must(400 <= http_status(error) <= 599, "no status for it")
    must(len(str(error)) < 10_000 and not any(secret in str(error) for secret in SECRETS), f"too much is told: {error}")


def _check_whole(outcome: Outcome, bodies: list[dict[str, Any]]) -> None:
    must(len(bodies) == 1, f"{len(bodies)} answers")
    data = bodies[0]["data"]
    if outcome.end == "failed":
        must(data == {"error": outcome.error}, f"another error than was said: {data}")
        return
    must(not data.get("error"), "answered with an error")
    must(isinstance(data.get("choices"), list) and data["choices"], "no choices")
    for choice in data["choices"]:
        must(isinstance(choice, dict) and isinstance(choice.get("message"), dict), f"an odd choice: {choice}")
        must(type(choice.get("index")) in (int, type(None)), "an odd index")


def _check_stream(outcome: Outcome, frames: list[dict[str, Any]]) -> None:
    must(frames and [frame["end"] for frame in frames] == [False] * (len(frames) - 1) + [True], "not one end, at the end")
    for frame in frames[:-1]:
        _check_chunk(frame["data"])
    last = frames[-1].get("data")
    must(last == (None if outcome.end == "answered" else {"error": outcome.error}), f"ended with {last}")
    must(outcome.end == "failed" or len(frames) > 1, "an answer without chunks")


def _check_chunk(chunk: Any) -> None:
    must(isinstance(chunk, dict) and isinstance(chunk.get("choices"), list), f"an odd chunk: {chunk}")
    must(not chunk.get("error"), "an error that is no end")
    for choice in chunk["choices"]:
        must(isinstance(choice, dict) and isinstance(choice.get("delta"), dict), f"an odd choice: {choice}")
        must(type(choice.get("index")) in (int, type(None)), "an odd index")


def _check_expected(case: Case, outcome: Outcome, bodies: list[dict[str, Any]]) -> None:
    if case.end is None:
        return
    must(outcome.end == case.end, f"{outcome.end} instead of {case.end}: {outcome.error}")
    if case.text is not None:
        must(_text(case, bodies).strip() == case.text, f"another text: {_text(case, bodies)!r}")


def _text(case: Case, bodies: list[dict[str, Any]]) -> str:
    if not case.stream:
        return str(bodies[0]["data"]["choices"][0]["message"]["content"])
    deltas = [choice["delta"] for frame in bodies[:-1] for choice in frame["data"]["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)
