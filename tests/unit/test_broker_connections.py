"""A connection's life, without a network: silence, limits, who may speak."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from broker.connections import Broker, Connection
from broker.dispatching import Dispatcher
from broker.publishing import MAX_PENDING
from broker.pulsar_pb2 import BaseCommand, CommandConnect, CommandPong, CommandProducer, CommandSend, MessageMetadata
from broker.storage import Storage
from broker.topics import Topics
from broker.wire import FrameReader, checksummed, encode, parse_command

HELLO = encode(BaseCommand(type=BaseCommand.CONNECT, connect=CommandConnect(client_version="test")))
PONG = encode(BaseCommand(type=BaseCommand.PONG, pong=CommandPong()))


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 6650)})
        self.reader, self.aborted, self.reading = FrameReader(), False, True
        self.sent: list[BaseCommand] = []

    def write(self, data: Any) -> None:
        self.sent += [parse_command(frame.command) for frame in self.reader.feed(bytes(data))]

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.aborted = True

    def types(self) -> list[int]:
        return [command.type for command in self.sent]


Connect = Callable[[], tuple[Connection, Wire]]


def play(folder: Path, script: Callable[[Connect, list[Callable[[], None]]], Coroutine[Any, Any, None]], max_connections: int = 10) -> None:
    """Runs a script with connections to one broker; what the writer tells waits in a list, for the script to run."""

    async def run() -> None:
        told: list[Callable[[], None]] = []
        storage = Storage(folder, told.append)
        dispatcher = Dispatcher(asyncio.get_running_loop())
        broker = Broker(Topics(storage, dispatcher.wake), storage, dispatcher, "", max_connections)

        def connect() -> tuple[Connection, Wire]:
            connection, wire = Connection(broker), Wire()
            connection.connection_made(wire)
            return connection, wire

        try:
            await script(connect, told)
        finally:
            storage.close()

    asyncio.run(run())


async def turn() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def test_who_is_silent_is_asked_and_then_dead(tmp_path: Path) -> None:
    async def script(connect: Connect, _: list[Callable[[], None]]) -> None:
        (alive, its_wire), (dead, dead_wire) = connect(), connect()
        for each in (alive, dead):
            each.data_received(HELLO)
            each.tick()
            each.tick()
        await turn()
        assert its_wire.types() == dead_wire.types() == [BaseCommand.CONNECTED, BaseCommand.PING]
        alive.data_received(PONG)
        alive.tick()
        dead.tick()
        assert (its_wire.aborted, dead_wire.aborted) == (False, True)

    play(tmp_path, script)


def test_who_never_says_hello_is_cut_off(tmp_path: Path) -> None:
    async def script(connect: Connect, _: list[Callable[[], None]]) -> None:
        (silent, silent_wire), (rude, rude_wire) = connect(), connect()
        silent.tick()
        rude.data_received(PONG)
        assert silent_wire.aborted and rude_wire.aborted

    play(tmp_path, script)


def test_connections_are_limited(tmp_path: Path) -> None:
    async def script(connect: Connect, _: list[Callable[[], None]]) -> None:
        wires = [connect()[1] for _ in range(3)]
        assert [wire.aborted for wire in wires] == [False, False, True]

    play(tmp_path, script, max_connections=2)


def test_who_does_not_read_is_not_read_from(tmp_path: Path) -> None:
    async def script(connect: Connect, _: list[Callable[[], None]]) -> None:
        connection, wire = connect()
        connection.data_received(HELLO)
        connection.pause_writing()
        assert not wire.reading and not connection.writable
        connection.resume_writing()
        assert wire.reading and connection.writable

    play(tmp_path, script)


def test_who_publishes_faster_than_the_disk_waits(tmp_path: Path) -> None:
    async def script(connect: Connect, told: list[Callable[[], None]]) -> None:
        connection, wire = connect()
        connection.data_received(HELLO)
        producer = CommandProducer(topic="t", producer_id=1, request_id=1)
        connection.data_received(encode(BaseCommand(type=BaseCommand.PRODUCER, producer=producer)))
        body = checksummed(MessageMetadata(publish_time=1).SerializeToString(), b"")
        for number in range(MAX_PENDING):
            send = CommandSend(producer_id=1, sequence_id=number)
            connection.data_received(encode(BaseCommand(type=BaseCommand.SEND, send=send), body))
        assert not wire.reading
        connection.tick()
        connection.tick()
        connection.tick()
        assert not wire.aborted, "its silence is the broker's doing"
        async with asyncio.timeout(10):
            while not wire.reading:
                await asyncio.sleep(0.001)
                while told:
                    told.pop(0)()
        await turn()
        assert wire.types().count(BaseCommand.SEND_RECEIPT) >= MAX_PENDING // 2

    play(tmp_path, script)


def test_a_failing_command_closes_its_connection_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(connect: Connect, _: list[Callable[[], None]]) -> None:
        (culprit, its_wire), (_bystander, other_wire) = connect(), connect()
        culprit.data_received(HELLO)
        monkeypatch.setattr("broker.topics.Topics.get_or_create", lambda *_: 1 / 0)
        producer = CommandProducer(topic="t", producer_id=1, request_id=1)
        culprit.data_received(encode(BaseCommand(type=BaseCommand.PRODUCER, producer=producer)))
        assert (its_wire.aborted, other_wire.aborted) == (True, False)

    play(tmp_path, script)
