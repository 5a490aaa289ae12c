"""What may be asked: the body of a chat completion, checked as far as the gateway must know it, and passed on as it came."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from gateway.problem import Problem, invalid


class _Message(msgspec.Struct):
    """Any object: what a message may hold is the model's to say."""


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Chat(msgspec.Struct):
    """The fields that the gateway reads; the others are only skipped over."""

    model: str
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


_decoder = msgspec.json.Decoder(Chat)
_JSON_WORDS = {
    "str": "a string", "int": "an integer", "float": "a number", "bool": "a boolean",
    "array": "an array", "object": "an object", "null": "null",
}


def read(body: bytes) -> Chat:
    """One pass over the body. Raises Problem (400) that names the parameter."""
    try:
        body.decode()  # msgspec checks the encoding only of the strings that it builds
        chat = _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"We could not parse the JSON body of your request: {error}", "invalid_json") from None
    if not chat.model:
        raise invalid("You must provide a model parameter.", "missing_required_parameter", "model")
    if chat.stream_options is not None and not chat.stream:
        raise invalid("The 'stream_options' parameter is only allowed when 'stream' is enabled.", None, "stream_options")
    return chat


def _explained(why: str) -> Problem:
    """msgspec's words, as OpenAI's."""
    missing = re.search(r"missing required field `(\w+)`", why)
    if missing:
        return invalid(f"Missing required parameter: '{missing[1]}'.", "missing_required_parameter", missing[1])
    place = re.search(r"at `\$\.(.+)`$", why)
    param = place[1] if place else None
    types = re.search(r"Expected `(\w+).*`, got `(\w+)`", why)
    if types is None:
        return invalid(f"Invalid '{param}': empty array. Expected an array with minimum length 1.", "empty_array", param)
    expected, given = (_JSON_WORDS.get(word, word) for word in types.groups())
    subject = f"type for '{param}'" if param else "body"
    return invalid(f"Invalid {subject}: expected {expected}, but got {given} instead.", "invalid_type", param)
