"""Frames of Pulsar's binary protocol: sizes, limits, checksums.

A frame is its size and its command's size (4 bytes each, big-endian; the first counts everything behind itself), the
command (protobuf), and for SEND and MESSAGE a body: optionally 0x0e01 and a CRC32C (4 bytes) of the rest, then the
metadata's size (4 bytes), the metadata (protobuf) and the payload.
Source: https://pulsar.apache.org/docs/developing-binary-protocol/
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

import google_crc32c
from google.protobuf.message import DecodeError

from broker.pulsar_pb2 import BaseCommand, MessageMetadata

MAX_MESSAGE_BYTES = 5 * 1024 * 1024
MAX_FRAME_BYTES = MAX_MESSAGE_BYTES + 10 * 1024  # the padding that Pulsar allows for command and metadata

_SIZE = Struct(">I")
_SIZES = Struct(">II")
_CHECKSUM = Struct(">HI")
_MAGIC = b"\x0e\x01"


class WireError(Exception):
    """The peer does not speak the protocol: its connection is to be closed."""


class ChecksumMismatch(Exception):
    """A body was changed on its way."""


class Frame(NamedTuple):
    """`body`: all bytes behind the command; empty but for SEND and MESSAGE."""

    command: bytes
    body: bytes


class FrameReader:
    """Cuts a stream of bytes into frames. It holds at most one unfinished frame."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._unread = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete with `data`. Raises WireError for sizes that cannot be."""
        self._unread += data
        position = 0
        try:
            with memoryview(self._unread) as view:
                while (frame_end := self._frame_end(view, position)) is not None:
                    command_end = position + 8 + int(_SIZE.unpack_from(view, position + 4)[0])
                    frame = Frame(bytes(view[position + 8 : command_end]), bytes(view[command_end:frame_end]))
                    position = frame_end
                    yield frame
        finally:
            del self._unread[:position]

    def _frame_end(self, view: memoryview, position: int) -> int | None:
        """Where the frame at `position` ends; None: it is not complete."""
        if len(view) - position < 8:
            return None
        size, command_size = _SIZES.unpack_from(view, position)
        if not 4 <= size <= self._max_frame_bytes or command_size > size - 4:
            raise WireError(f"a frame of {size:,} bytes with a command of {command_size:,}")
        return position + size + 4 if len(view) - position >= size + 4 else None


def parse_command(command: bytes) -> BaseCommand:
    """Raises WireError for what is no command, or lacks what the protocol requires of it."""
    try:
        parsed = BaseCommand.FromString(command)
    except DecodeError as error:
        raise WireError(f"a command that cannot be read: {error}") from None
    if not parsed.IsInitialized():
        raise WireError(f"an unknown or incomplete command: {command[:40].hex()}")
    return parsed


def parse_metadata(body: bytes) -> MessageMetadata:
    """The metadata of a message's body, its checksum verified where there is one. Raises WireError, ChecksumMismatch."""
    start = 0
    if body[:2] == _MAGIC:
        if len(body) < 10:
            raise WireError("a message without metadata")
        if google_crc32c.value(body[6:]) != _CHECKSUM.unpack_from(body)[1]:
            raise ChecksumMismatch
        start = 6
    return _metadata_at(body, start)


def _metadata_at(body: bytes, start: int) -> MessageMetadata:
    if len(body) < start + 4:
        raise WireError("a message without metadata")
    size = int(_SIZE.unpack_from(body, start)[0])
    if size > len(body) - start - 4:
        raise WireError("a message shorter than its metadata")
    try:
        metadata = MessageMetadata.FromString(body[start + 4 : start + 4 + size])
    except DecodeError as error:
        raise WireError(f"a message's metadata that cannot be read: {error}") from None
    if not metadata.IsInitialized():
        raise WireError("a message's metadata without its publish time")
    return metadata


def frame_head(command_size: int, body_size: int) -> bytes:
    """The eight bytes before a command."""
    return _SIZES.pack(command_size + 4 + body_size, command_size)


def encode(command: BaseCommand, body: bytes = b"") -> bytes:
    """A whole frame."""
    encoded = command.SerializeToString()
    return frame_head(len(encoded), len(body)) + encoded + body


def checksummed(metadata: bytes, payload: bytes) -> bytes:
    """A message's body as clients send it, with its checksum."""
    rest = _SIZE.pack(len(metadata)) + metadata + payload
    return _CHECKSUM.pack(0x0E01, google_crc32c.value(rest)) + rest
