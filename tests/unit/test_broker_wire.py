"""Frames: cut anywhere, of any size, and garbage."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.pulsar_pb2 import BaseCommand, CommandPing, CommandSend, MessageMetadata
from broker.wire import (
    MAX_FRAME_BYTES,
    ChecksumMismatch,
    Frame,
    FrameReader,
    WireError,
    checksummed,
    encode,
    frame_head,
    parse_command,
    parse_metadata,
)

PING = BaseCommand(type=BaseCommand.PING, ping=CommandPing())


def metadata(messages: int = 1, deliver_at_ms: int = 0) -> bytes:
    return MessageMetadata(publish_time=1, num_messages_in_batch=messages, deliver_at_time=deliver_at_ms).SerializeToString()


@given(st.lists(st.tuples(st.binary(max_size=50), st.binary(max_size=300))), st.data())
def test_frames_come_out_as_they_went_in_however_they_are_cut(frames: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    stream = b"".join(frame_head(len(command), len(body)) + command + body for command, body in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    reader = FrameReader()
    found = [frame for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True) for frame in reader.feed(stream[start:end])]
    assert found == [Frame(command, body) for command, body in frames]


@given(st.lists(st.binary(max_size=100)))
def test_garbage_is_a_wire_error_or_waits_for_more(pieces: list[bytes]) -> None:
    reader = FrameReader()
    try:
        for piece in pieces:
            for frame in reader.feed(piece):
                parse_command(frame.command)
                parse_metadata(frame.body)
    except (WireError, ChecksumMismatch):
        pass


@given(st.binary(max_size=200))
def test_a_garbled_body_is_a_wire_error_or_a_mismatch(body: bytes) -> None:
    with contextlib.suppress(WireError, ChecksumMismatch):
        parse_metadata(body)


@pytest.mark.parametrize("size", [0, 3, MAX_FRAME_BYTES + 1, 2**32 - 1])
def test_sizes_that_cannot_be_are_refused_before_anything_is_kept(size: int) -> None:
    with pytest.raises(WireError):
        list(FrameReader().feed(size.to_bytes(4, "big") + (0).to_bytes(4, "big")))


def test_a_command_longer_than_its_frame_is_refused() -> None:
    with pytest.raises(WireError):
        list(FrameReader().feed((8).to_bytes(4, "big") + (5).to_bytes(4, "big")))


def test_frames_before_a_wrong_one_are_given_out() -> None:
    reader = FrameReader().feed(encode(PING) + b"\xff" * 8)
    assert parse_command(next(reader).command).type == BaseCommand.PING
    with pytest.raises(WireError):
        next(reader)


@pytest.mark.parametrize("command", [b"", b"\x08\xc8\x01", b"\x08", b"\x08\x06\x32\x00"])
def test_commands_that_are_unknown_or_lack_something_are_wire_errors(command: bytes) -> None:
    with pytest.raises(WireError):
        parse_command(command)


def test_a_message_is_carried_untouched() -> None:
    body = checksummed(metadata(3, 99), b"payload")
    command = BaseCommand(type=BaseCommand.SEND, send=CommandSend(producer_id=1, sequence_id=2))
    (frame,) = FrameReader().feed(encode(command, body))
    assert frame.body == body
    assert parse_command(frame.command) == command
    parsed = parse_metadata(frame.body)
    assert (parsed.num_messages_in_batch, parsed.deliver_at_time) == (3, 99)


def test_a_message_without_a_checksum_is_taken() -> None:
    assert parse_metadata(checksummed(metadata(), b"payload")[6:]).publish_time == 1


def test_a_changed_message_is_noticed() -> None:
    body = bytearray(checksummed(metadata(), b"payload"))
    body[-1] ^= 1
    with pytest.raises(ChecksumMismatch):
        parse_metadata(bytes(body))
