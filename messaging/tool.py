"""What the commands that look into Pulsar have in common: the way to a client, and mistakes that are said in a line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pulsar

import config
from errors import ExitCode
from messaging.client import open_client
from messaging.handshake import find_trouble

if TYPE_CHECKING:
    from config import Settings


class Failure(Exception):
    """What to say, in a line, and the exit code."""

    def __init__(self, message: str, code: ExitCode = ExitCode.CRASHED) -> None:
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
def connected(settings: Settings) -> Iterator[pulsar.Client]:
    """Raises Failure."""
    if not settings.pulsar_url:
        words = "PULSAR_URL should be set, as for the node: pulsar://host:6650; for one with its own broker pulsar://127.0.0.1:6650"
        raise Failure(f"configuration: {words}", ExitCode.CONFIGURATION)
    if trouble := find_trouble(settings):
        raise Failure(trouble.message, ExitCode.CONFIGURATION if trouble.refused else ExitCode.CRASHED)
    client = open_client(settings)
    try:
        yield client
    finally:
        client.close()


def exit_code_of(run: Callable[[Settings], None]) -> ExitCode:
    """Of a command, given what the environment says. `run` may raise Failure and pulsar.PulsarException."""
    try:
        run(config.load())
        return ExitCode.OK
    except config.ConfigurationMistakes as mistakes:
        print("\n".join(f"configuration: {mistake}" for mistake in mistakes.mistakes), file=sys.stderr)
        return ExitCode.CONFIGURATION
    except pulsar.AuthorizationError as error:
        print(f"Pulsar does not allow this token to use the topic: {error}", file=sys.stderr)
        return ExitCode.CONFIGURATION
    except pulsar.PulsarException as error:
        print(f"Pulsar failed: {type(error).__name__}: {error}", file=sys.stderr)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return failure.code
    return ExitCode.CRASHED
