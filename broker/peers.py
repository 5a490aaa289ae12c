"""What a command's handler sees of the connection that it came over, and the answers that all of them give."""

from __future__ import annotations

from typing import Protocol

from broker.pulsar_pb2 import BaseCommand, CommandError, CommandSuccess, ServerError

NO_REQUEST = 2**64 - 1  # Pulsar's -1, for what nobody asked for


class Peer(Protocol):
    """One connected client."""

    address: str
    client_version: str

    @property
    def writable(self) -> bool:
        """False while it does not read what it was sent."""

    def send(self, command: BaseCommand, body: bytes = b"") -> None:
        """Queued and sent with the others of this turn; nothing happens once it is gone."""

    def hold(self) -> None:
        """Read nothing more from it until `release`."""

    def release(self) -> None: ...


class Refused(Exception):
    """A request that is answered with Pulsar's error."""

    def __init__(self, error: ServerError, message: str) -> None:
        super().__init__(message)
        self.error, self.message = error, message


def succeed(peer: Peer, request_id: int) -> None:
    peer.send(BaseCommand(type=BaseCommand.SUCCESS, success=CommandSuccess(request_id=request_id)))


def refuse(peer: Peer, request_id: int, error: ServerError, message: str) -> None:
    answer = CommandError(request_id=request_id, error=error, message=message)
    peer.send(BaseCommand(type=BaseCommand.ERROR, error=answer))
