"""A channel: one pipe pair between the supervisor and one child, thrown away with that child.

A frame is a length (4 bytes, big-endian) and that many bytes of MessagePack. The supervisor's end never blocks:
it reads what is there and buffers what the pipe does not take. So does that of a child that works; one that serves, as
the gateway does, has a thread for it, which blocks.
Whatever is wrong with a frame is wrong with this channel alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import msgspec

from ipc.messages import FromChild, ToChild

MAX_FRAME_BYTES = 128 << 20  # the longest answer that an upstream may give is half of it
MAX_UNSENT_BYTES = 256 << 20
_HEADER = struct.Struct(">I")
_READ_BYTES = 64 << 10  # more would be memory mapped anew for each read
PIPE_BYTES = 1 << 20  # to a child, where the kernel allows it: 64 KiB each wake both sides 16 times for a request with images
_T = TypeVar("_T")


class ChannelBroken(Exception):
    """The other side closed its end, or sent what is no frame. The channel and its child are done for."""


class ChannelClosed(ChannelBroken):
    """The other side's end is closed: its process is most likely dying, and its exit code will say more."""


class PipeEnd(Protocol):
    """What multiprocess's Connection offers and a channel needs."""

    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Frames(Generic[_T]):
    """Bytes in, messages out; keeps an unfinished frame for the next bytes."""

    def __init__(self, decode: Callable[[bytes], _T]) -> None:
        self._decode = decode
        self._buffer = bytearray()

    def feed(self, data: bytes, messages: list[_T]) -> None:
        """Append what is complete to `messages`. Raises ChannelBroken at a frame that is too long or holds no known
        message; what came whole before it has been appended by then."""
        self._buffer += data
        start = 0
        try:
            while (end := self._end_of_frame(start)) is not None:
                messages.append(self._message(bytes(self._buffer[start + _HEADER.size : end])))
                start = end
        finally:
            del self._buffer[:start]

    def _end_of_frame(self, start: int) -> int | None:
        """None: it is not whole yet."""
        if len(self._buffer) - start < _HEADER.size:
            return None
        (length,) = _HEADER.unpack_from(self._buffer, start)
        if length > MAX_FRAME_BYTES:
            raise ChannelBroken(f"a frame announces {length:,} bytes, over the limit of {MAX_FRAME_BYTES:,}")
        end = start + _HEADER.size + int(length)
        return end if len(self._buffer) >= end else None

    def _message(self, body: bytes) -> _T:
        try:
            return self._decode(body)
        except (ValueError, RecursionError) as error:  # ValueError: msgspec's own, and text that is no UTF-8
            raise ChannelBroken(f"a frame holds no known message: {error}") from None


def frame(message: msgspec.Struct) -> bytes:
    body = msgspec.msgpack.encode(message)
    return _HEADER.pack(len(body)) + body


class _End(Generic[_T]):
    """One side, which never blocks. OTHER: what the side across is, for errors."""

    OTHER = "other side"

    def __init__(self, reading: PipeEnd, writing: PipeEnd, decode: Callable[[bytes], _T]) -> None:
        self._reading, self._writing = reading, writing
        os.set_blocking(reading.fileno(), False)
        os.set_blocking(writing.fileno(), False)
        self._frames: Frames[_T] = Frames(decode)
        self._unsent = bytearray()
        self._stuck_since_s: float | None = None

    @property
    def read_fd(self) -> int:
        return self._reading.fileno()

    @property
    def write_fd(self) -> int:
        return self._writing.fileno()

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def stuck_for_s(self) -> float:
        """How long bytes have been waiting without the child taking any."""
        return 0.0 if self._stuck_since_s is None else time.monotonic() - self._stuck_since_s

    def send(self, message: ToChild | FromChild) -> None:
        """Raises ChannelBroken when the other side is gone or has left too much unread."""
        self.put(message)
        self.flush()

    def put(self, message: ToChild | FromChild) -> None:
        """It goes out with the next `flush`. Raises ChannelBroken when the other side has left too much unread."""
        if len(self._unsent) > MAX_UNSENT_BYTES:
            raise ChannelBroken(f"the {self.OTHER} left {len(self._unsent):,} bytes unread")
        self._unsent += frame(message)

    def flush(self) -> None:
        """Write what the pipe takes now."""
        try:
            while self._unsent:
                written = os.write(self._writing.fileno(), memoryview(self._unsent)[: 1 << 20])
                del self._unsent[:written]
                self._stuck_since_s = None
        except BlockingIOError:
            self._stuck_since_s = self._stuck_since_s or time.monotonic()
        except OSError as error:
            raise ChannelClosed(f"the {self.OTHER}'s end is closed: {error}") from None

    def receive(self, *, to_end: bool = False) -> tuple[list[_T], ChannelBroken | None]:
        """Everything the other side has said by now, and what broke the channel after that, if anything did. to_end: whether
        it has is asked for at once, and not by the next call alone."""
        messages: list[_T] = []
        try:
            while data := os.read(self._reading.fileno(), _READ_BYTES):
                self._frames.feed(data, messages)
                if len(data) < _READ_BYTES and not to_end:
                    return messages, None  # that was all
        except BlockingIOError:
            return messages, None
        except ChannelBroken as broken:
            return messages, broken
        except OSError as error:
            return messages, ChannelBroken(str(error))
        return messages, ChannelClosed(f"the {self.OTHER} closed its end")

    def close(self) -> None:
        self._reading.close()
        self._writing.close()


class SupervisorEnd(_End[FromChild]):
    """The supervisor's side."""

    OTHER = "child"

    def __init__(self, reading: PipeEnd, writing: PipeEnd) -> None:
        super().__init__(reading, writing, msgspec.msgpack.Decoder(FromChild).decode)
        with contextlib.suppress(OSError):  # a user may have 64 MiB in such pipes, unless the host says otherwise
            fcntl.fcntl(writing.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


class WorkerEnd(_End[ToChild]):
    """The side of a child that works in one loop (ipc/onloop.py)."""

    OTHER = "supervisor"

    def __init__(self, reading: PipeEnd, writing: PipeEnd) -> None:
        super().__init__(reading, writing, msgspec.msgpack.Decoder(ToChild).decode)

    def is_cut(self) -> bool:
        """Whether the supervisor is gone, whatever of its messages is still unread."""
        return _is_hung_up(self._reading.fileno())


class ChildEnd:
    """The side of a child that serves: it blocks. One thread receives, any thread sends."""

    def __init__(self, reading: PipeEnd, writing: PipeEnd) -> None:
        self._reading, self._writing = reading, writing
        self._frames: Frames[ToChild] = Frames(msgspec.msgpack.Decoder(ToChild).decode)
        self._lock = threading.Lock()

    def send(self, message: FromChild) -> None:
        """Raises ChannelBroken when the supervisor is gone."""
        view = memoryview(frame(message))
        try:
            with self._lock:
                while view:
                    view = view[os.write(self._writing.fileno(), view) :]
        except OSError as error:
            raise ChannelBroken(f"the supervisor's end is closed: {error}") from None

    def receive(self, timeout_s: float) -> list[ToChild]:
        """At least one message, or [] when none came in time. Raises ChannelBroken when the supervisor is gone, or has
        sent what is no message; those before it are returned first."""
        give_up_at_s = time.monotonic() + timeout_s
        messages: list[ToChild] = []
        self._feed(b"", messages)  # what broke the channel last time, behind messages, breaks it now
        while not messages and (left_s := give_up_at_s - time.monotonic()) > 0:
            data = self._read(left_s)
            if data is None:
                return []
            self._feed(data, messages)
        return messages

    def _feed(self, data: bytes, messages: list[ToChild]) -> None:
        try:
            self._frames.feed(data, messages)
        except ChannelBroken:
            if not messages:
                raise

    def _read(self, timeout_s: float) -> bytes | None:
        """None: nothing came in time."""
        poll = select.poll()  # select() itself refuses descriptors from 1024 on
        try:
            poll.register(self._reading.fileno(), select.POLLIN)
            if not poll.poll(timeout_s * 1000):
                return None
            data = os.read(self._reading.fileno(), _READ_BYTES)
        except OSError as error:
            raise ChannelBroken(f"reading from the supervisor failed: {error}") from None
        if not data:
            raise ChannelBroken("the supervisor closed its end")
        return data


def _is_hung_up(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)  # a hang-up is always reported
    return any(events & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, events in poll.poll(0))
