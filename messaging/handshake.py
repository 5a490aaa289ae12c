"""Why can Pulsar not be used? One connection by hand, as the client says `Timeout` to a refused token, a refused
connection and a silent broker alike.

Source: Pulsar's binary protocol (PulsarApi.proto): a frame is its size and its command's size, 4 bytes each, and the
command; CONNECT is answered with CONNECTED or ERROR.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from messaging.tokens import current_token

if TYPE_CHECKING:
    from config import Settings

TIMEOUT_S = 5.0
MAX_FRAME_BYTES = 1 << 20
_CONNECT, _CONNECTED, _ERROR = 2, 3, 14  # BaseCommand.Type, and the field of that command within BaseCommand
_AUTHENTICATION_ERROR, _AUTHORIZATION_ERROR = 3, 4  # ServerError
_PROTOCOL_VERSION = 15


@dataclass(frozen=True)
class QueueTrouble:
    """What is wrong with Pulsar, for a human. `refused`: it refuses us, and waiting will not help."""

    message: str
    refused: bool = False


def find_trouble(settings: Settings) -> QueueTrouble | None:
    """None: a broker is there and takes us. Blocks for TIMEOUT_S at most, for each address in PULSAR_URL."""
    trouble = None
    scheme, _, addresses = settings.pulsar_url.partition("://")
    for address in addresses.split(","):
        trouble = _trouble_at(scheme, address, settings)
        if trouble is None:
            return None
    return trouble


def _trouble_at(scheme: str, address: str, settings: Settings) -> QueueTrouble | None:
    parts = urlsplit(f"//{address}")
    host, port = parts.hostname or "", parts.port or (6651 if scheme == "pulsar+ssl" else 6650)
    where, token = f"Pulsar at {scheme}://{address}", current_token(settings)
    try:
        with socket.create_connection((host, port), TIMEOUT_S) as plain:
            if scheme == "pulsar+ssl":
                context = ssl.create_default_context(cafile=settings.ca_bundle or None)
                with context.wrap_socket(plain, server_hostname=host) as secured:
                    return _ask(secured, token, where)
            return _ask(plain, token, where)
    except ssl.SSLError as error:
        return QueueTrouble(f"{where} has a certificate that cannot be verified: {error}; check PULSAR_URL and CA_BUNDLE")
    except (OSError, struct.error, ValueError, IndexError) as error:
        return QueueTrouble(f"{where} is not to be reached: {error or type(error).__name__}; check PULSAR_URL and that Pulsar runs")


def _ask(connection: socket.socket, token: str, where: str) -> QueueTrouble | None:
    connection.sendall(_connect_frame(token))
    answer = dict(fields_of(_read_frame(connection)))
    if answer.get(1) != _ERROR:
        return None if answer.get(1) == _CONNECTED else QueueTrouble(f"{where} is no Pulsar broker; check PULSAR_URL")
    error = answer.get(_ERROR)
    details = dict(fields_of(error)) if isinstance(error, bytes) else {}
    if details.get(2) in (_AUTHENTICATION_ERROR, _AUTHORIZATION_ERROR):
        asked = "the token" if token else "a node without a token"
        return QueueTrouble(f"{where} refuses {asked}: check PULSAR_TOKEN", refused=True)
    words = details.get(3)
    return QueueTrouble(f"{where} refuses the connection: {words.decode(errors='replace') if isinstance(words, bytes) else words}")


def _connect_frame(token: str) -> bytes:
    connect = _text(1, b"workernode") + bytes([4 << 3, _PROTOCOL_VERSION])
    if token:
        connect += _text(3, token.encode()) + _text(5, b"token")
    command = bytes([1 << 3, _CONNECT]) + _text(_CONNECT, connect)
    return struct.pack(">II", len(command) + 4, len(command)) + command


def _read_frame(connection: socket.socket) -> bytes:
    size, command_size = struct.unpack(">II", _read_exactly(connection, 8))
    if size > MAX_FRAME_BYTES or command_size > size:
        raise ValueError("it does not speak Pulsar's protocol")
    return _read_exactly(connection, size - 4)[:command_size]


def _read_exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise ValueError("it closes the connection without a word")
        data += piece
    return data


def _text(field: int, value: bytes) -> bytes:
    return _varint((field << 3) | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append((value & 0x7F) | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def fields_of(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a protobuf message's fields that are varints or lengths; ends at anything else."""
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        value, position = _read_varint(message, position)
        if tag & 7 == 0:
            yield tag >> 3, value
        elif tag & 7 == 2:
            yield tag >> 3, message[position : position + value]
            position += value
        else:
            return


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The value and the position behind it."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
