"""The channel over real pipes: nothing is lost, nothing blocks the supervisor, nothing but ChannelBroken comes of garbage."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ipc.channel
from ipc.channel import MAX_FRAME_BYTES, ChannelBroken, ChannelClosed, ChildEnd, SupervisorEnd
from ipc.messages import Begun, Computed, FromChild, Lease, Outcome, Probe, Probed, Ready, Refuse, Stop, Task, ToChild, Unusable
from tests.unit.pipes import pipe


class Pipes:
    """Both ends of a channel, and the raw ends under them."""

    def __init__(self) -> None:
        self.to_child_read, self.to_child_write = pipe()
        self.from_child_read, self.from_child_write = pipe()
        self.supervisor = SupervisorEnd(self.from_child_read, self.to_child_write)
        self.child = ChildEnd(self.to_child_read, self.from_child_write)

    def close(self) -> None:
        for end in (self.to_child_read, self.to_child_write, self.from_child_read, self.from_child_write):
            end.close()

    def as_child(self, data: bytes) -> None:
        os.write(self.from_child_write.fileno(), data)

    def as_supervisor(self, data: bytes) -> None:
        os.write(self.to_child_write.fileno(), data)


@contextlib.contextmanager
def opened() -> Iterator[Pipes]:
    pipes = Pipes()
    try:
        yield pipes
    finally:
        pipes.close()


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    with opened() as both:
        yield both


def frame(message: ToChild | FromChild) -> bytes:
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4, "big") + body


ERROR = {"message": "é", "type": "server_error", "param": None, "code": 500}
TASK = Task(1, "id", True, "ws://h/res/ws", b'{"a":1}', 1.5, 2.5, 1)
REFUSE = Refuse(2, "id", False, "http://h/res", ERROR, 1.5, 2.5, 2, "ws://h/res/link")
TO_CHILD: list[ToChild] = [TASK, REFUSE, Lease(), Probe(True), Stop()]
FROM_CHILD: list[FromChild] = [
    Ready(4, [1, 2]),
    Ready(0),
    Unusable("why", True),
    Begun(1),
    Computed(2**40),
    Probed(),
    Probed(ERROR, "AuthenticationError"),
    Outcome(3, "answered"),
    Outcome(4, "undeliverable", ERROR, "AuthenticationError", 1.5, 1, 2, "reported", "m", 1.0, 2.0, 3.0, 4.0, b"\0\xff", True),
]


def test_every_message_arrives_as_it_was(pipes: Pipes) -> None:
    for down in TO_CHILD:
        pipes.supervisor.send(down)
    assert pipes.child.receive(1) == TO_CHILD
    for up in FROM_CHILD:
        pipes.child.send(up)
    assert pipes.supervisor.receive() == (FROM_CHILD, None)
    assert pipes.supervisor.receive() == ([], None)
    assert not pipes.supervisor.has_unsent and pipes.supervisor.stuck_for_s() == 0


def test_frames_cut_at_every_byte(pipes: Pipes) -> None:
    sent: list[FromChild] = [FROM_CHILD[-1], Begun(1)]
    data = b"".join(map(frame, sent))
    for cut in range(len(data) + 1):
        pipes.as_child(data[:cut])
        first, broken = pipes.supervisor.receive()
        assert broken is None
        pipes.as_child(data[cut:])
        second, broken = pipes.supervisor.receive()
        assert broken is None
        assert first + second == sent


def test_a_byte_at_a_time(pipes: Pipes) -> None:
    for byte in frame(TASK)[:-1]:
        pipes.as_supervisor(bytes([byte]))
        assert pipes.child.receive(0.001) == []
    pipes.as_supervisor(frame(TASK)[-1:])
    assert pipes.child.receive(1) == [TASK]


GARBAGE = [
    b"\0\0\0\0", b"\xff\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n", (MAX_FRAME_BYTES + 1).to_bytes(4, "big"), b"\0\0\0\1\xc1",
    frame(TASK), b"\0\0\0\5\x81\xa4type", b"\0\0\0\3\xa2\xff\xff",
]  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_came_whole_before_garbage_is_delivered_once(pipes: Pipes, garbage: bytes) -> None:
    pipes.as_child(frame(Begun(1)) + frame(Begun(2)) + garbage)
    messages, broken = pipes.supervisor.receive()
    assert messages == [Begun(1), Begun(2)]
    assert isinstance(broken, ChannelBroken) and not isinstance(broken, ChannelClosed)
    pipes.from_child_write.close()
    messages, broken = pipes.supervisor.receive()
    assert messages == [] and broken is not None


def test_the_child_gets_what_came_before_garbage_too(pipes: Pipes) -> None:
    pipes.as_supervisor(frame(Lease()) + b"\xff\xff\xff\xff")
    assert pipes.child.receive(1) == [Lease()]
    for _ in range(2):
        with pytest.raises(ChannelBroken):
            pipes.child.receive(1)


_OUTCOME_START = b"\x83\xa4type\xa7outcome\xa6number\x01\xa3end"  # a map of three, its third value to come
_framed = st.binary(max_size=60).map(lambda body: len(body).to_bytes(4, "big") + body)
_nearly = st.binary(max_size=60).map(lambda tail: (len(_OUTCOME_START + tail)).to_bytes(4, "big") + _OUTCOME_START + tail)


@given(st.lists(st.binary(max_size=30) | _framed | _nearly | st.sampled_from([*map(frame, FROM_CHILD), *GARBAGE]), max_size=6))
def test_random_garbage_breaks_the_channel_and_nothing_else(pieces: list[bytes]) -> None:
    with opened() as pipes:
        for piece in pieces:
            pipes.as_child(piece)
            _, broken = pipes.supervisor.receive()
            if broken is not None:
                return
        pipes.from_child_write.close()
        assert isinstance(pipes.supervisor.receive()[1], ChannelClosed)


def test_depth_beyond_reason_is_garbage(pipes: Pipes) -> None:
    body = b"\x84\xa4type\xa7outcome\xa6number\x01\xa3end\xa6failed\xa5error\x81\xa1x" + b"\x91" * 50_000
    pipes.as_child(len(body).to_bytes(4, "big") + body)
    messages, broken = pipes.supervisor.receive()
    assert messages == [] and isinstance(broken, ChannelBroken)


def test_megabytes_never_block_the_supervisor(pipes: Pipes) -> None:
    big = [msgspec.structs.replace(TASK, number=n, data=bytes(5 << 20)) for n in range(3)]
    started_s = time.monotonic()
    for task in big:
        pipes.supervisor.send(task)
    assert time.monotonic() - started_s < 1
    assert pipes.supervisor.has_unsent
    received: list[ToChild] = []

    def read() -> None:
        while len(received) < len(big):
            received.extend(pipes.child.receive(5))

    thread = threading.Thread(target=read)
    thread.start()
    give_up_at_s = time.monotonic() + 10
    while pipes.supervisor.has_unsent and time.monotonic() < give_up_at_s:
        pipes.supervisor.flush()
    thread.join(10)
    assert received == big
    assert pipes.supervisor.stuck_for_s() == 0


def test_megabytes_from_the_child(pipes: Pipes) -> None:
    outcome = Outcome(1, "undeliverable", answer=bytes(5 << 20))

    def say() -> None:
        pipes.child.send(outcome)
        pipes.child.send(Begun(2))

    thread = threading.Thread(target=say)
    thread.start()
    received: list[FromChild] = []
    give_up_at_s = time.monotonic() + 10
    while len(received) < 2 and time.monotonic() < give_up_at_s:
        messages, broken = pipes.supervisor.receive()
        assert broken is None
        received += messages
    thread.join(10)
    assert received == [outcome, Begun(2)]


def test_many_threads_of_a_child_send_whole_messages(pipes: Pipes) -> None:
    def say(number: int) -> None:
        for _ in range(50):
            pipes.child.send(Outcome(number, "answered", answer=bytes(3000)))

    threads = [threading.Thread(target=say, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    count = 0
    give_up_at_s = time.monotonic() + 10
    while count < 400 and time.monotonic() < give_up_at_s:
        messages, broken = pipes.supervisor.receive()
        assert broken is None
        count += len(messages)
    for thread in threads:
        thread.join(10)
    assert count == 400


def test_how_long_it_is_stuck(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(ipc.channel.time, "monotonic", lambda: now_s)  # type: ignore[attr-defined]
    pipes.supervisor.send(msgspec.structs.replace(TASK, data=bytes(2 * ipc.channel.PIPE_BYTES)))
    now_s = 103.0
    pipes.supervisor.flush()
    assert pipes.supervisor.stuck_for_s() == 3
    os.read(pipes.to_child_read.fileno(), 1 << 16)
    pipes.supervisor.flush()  # the child has taken some
    assert pipes.supervisor.has_unsent and pipes.supervisor.stuck_for_s() == 0
    now_s = 105.0
    assert pipes.supervisor.stuck_for_s() == 2


def test_a_child_that_leaves_too_much_unread_breaks_its_channel(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipc.channel, "MAX_UNSENT_BYTES", 1 << 20)
    with pytest.raises(ChannelBroken, match="bytes unread") as caught:
        for _ in range(100):
            pipes.supervisor.send(msgspec.structs.replace(TASK, data=bytes(100_000)))
    assert not isinstance(caught.value, ChannelClosed)


def test_closed_ends(pipes: Pipes) -> None:
    pipes.child.send(Begun(1))
    pipes.from_child_write.close()
    pipes.to_child_read.close()
    with pytest.raises(ChannelClosed):
        pipes.supervisor.send(Lease())
    messages, broken = pipes.supervisor.receive(to_end=True)
    assert messages == [Begun(1)] and isinstance(broken, ChannelClosed)
    with pytest.raises(ChannelBroken):
        pipes.child.send(Begun(2))
    with pytest.raises(ChannelBroken):
        pipes.child.receive(1)


def test_a_child_whose_supervisor_is_gone(pipes: Pipes) -> None:
    pipes.supervisor.send(Stop())
    pipes.supervisor.close()
    assert pipes.child.receive(1) == [Stop()]
    with pytest.raises(ChannelBroken, match="closed its end"):
        pipes.child.receive(1)
    with pytest.raises(ChannelBroken):
        pipes.child.send(Begun(1))


def test_a_silent_supervisor(pipes: Pipes) -> None:
    assert pipes.child.receive(0) == []
    assert pipes.child.receive(0.01) == []
