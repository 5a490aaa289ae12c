"""How many messages a batch has, out of the client's serialized message id."""

from __future__ import annotations

import pulsar
import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.line import batch_size


class Identifier:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> bytes:
        return self._data


def varint(value: int) -> bytes:
    value &= 2**64 - 1  # as protobuf writes a negative one
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message_id(**fields: int | list[int]) -> Identifier:
    """MessageIdData of PulsarApi.proto."""
    numbers = {"ledger": 1, "entry": 2, "partition": 3, "batch_index": 4, "ack_set": 5, "batch_size": 6}
    data = b""
    for name, number in numbers.items():
        values = fields.get(name, [])
        for value in values if isinstance(values, list) else [values]:
            data += varint(number << 3) + varint(value)
    return Identifier(data)


@given(st.integers(0, 2**63), st.integers(0, 2**63), st.integers(-1, 100), st.integers(-1, 5000), st.integers(0, 5000))
def test_the_size_is_found(ledger: int, entry: int, partition: int, index: int, size: int) -> None:
    found = message_id(ledger=ledger, entry=entry, partition=partition, batch_index=index, batch_size=size)
    assert batch_size(found) == size


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5))
def test_behind_an_ack_set(ack_set: list[int]) -> None:
    assert batch_size(message_id(ledger=1, entry=2, batch_index=3, ack_set=ack_set, batch_size=7)) == 7


def test_before_an_embedded_message() -> None:
    chunked = Identifier(message_id(ledger=1, entry=2, batch_size=9).serialize() + b"\x3a\x04\x08\x01\x10\x02")
    assert batch_size(chunked) == 9


@pytest.mark.parametrize("identifier", [pulsar.MessageId(-1, 5, 7, -1), pulsar.MessageId(3, 5, 7, 2), Identifier(b"")])
def test_outside_of_a_batch_it_is_0(identifier: pulsar.MessageId) -> None:
    assert batch_size(identifier) == 0
