"""The generated module is of this .proto, and the numbers are Pulsar's."""

from __future__ import annotations

import re
from pathlib import Path

from broker import pulsar_pb2
from broker.pulsar_pb2 import BaseCommand

PROTO = Path(pulsar_pb2.__file__).with_name("pulsar.proto")
Fields = dict[str, tuple[str, int]]


def declared() -> tuple[dict[str, Fields], dict[str, dict[str, int]]]:
    """Messages' fields (name → label and number) and enums' values, by the names of what encloses them."""
    messages: dict[str, Fields] = {}
    enums: dict[str, dict[str, int]] = {}
    path: list[tuple[str, str]] = []
    for line in re.sub(r"//.*", "", PROTO.read_text()).splitlines():
        if opened := re.match(r"\s*(message|enum) (\w+) \{(\})?", line):
            name = ".".join([outer for _, outer in path] + [opened[2]])
            (messages if opened[1] == "message" else enums)[name] = {}
            if not opened[3]:
                path.append((opened[1], opened[2]))
        elif "}" in line:
            path.pop()
        elif field := re.match(r"\s*(required|optional|repeated) [\w.]+ (\w+) = (\d+)", line):
            messages[".".join(name for _, name in path)][field[2]] = (field[1], int(field[3]))
        elif value := re.match(r"\s*(\w+) = (\d+);", line):
            enums[".".join(name for _, name in path)][value[1]] = int(value[2])
    return messages, enums


def test_the_generated_descriptor_has_the_protos_messages() -> None:
    messages, _ = declared()
    assert set(pulsar_pb2.DESCRIPTOR.message_types_by_name) == set(messages)
    for name, fields in messages.items():
        found = pulsar_pb2.DESCRIPTOR.message_types_by_name[name].fields
        label = {field.name: "repeated" if field.is_repeated else "required" if field.is_required else "optional" for field in found}
        assert {field.name: (label[field.name], field.number) for field in found} == fields, name


def test_the_generated_descriptor_has_the_protos_enums() -> None:
    _, enums = declared()
    for name, values in enums.items():
        *outer, last = name.split(".")
        holder = pulsar_pb2.DESCRIPTOR.message_types_by_name[outer[0]] if outer else pulsar_pb2.DESCRIPTOR
        assert {value.name: value.number for value in holder.enum_types_by_name[last].values} == values, name


def test_a_commands_type_is_its_fields_number() -> None:
    numbers = {value.number for value in BaseCommand.Type.DESCRIPTOR.values}
    assert numbers == set(BaseCommand.DESCRIPTOR.fields_by_number) - {1}


def test_bytes_are_those_of_pulsars_own_clients() -> None:
    """As messaging/handshake.py writes them by hand."""
    frame = BaseCommand(type=BaseCommand.CONNECT, connect=pulsar_pb2.CommandConnect(client_version="w", protocol_version=15))
    assert frame.SerializeToString() == bytes([8, 2, 18, 5, 10, 1, 119, 32, 15])
