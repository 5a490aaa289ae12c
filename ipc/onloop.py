"""A child's side of its channel on the child's event loop: messages heard as they come, sent together at a turn's end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ipc.channel import ChannelBroken, WorkerEnd
from ipc.messages import FromChild, ToChild


class LoopEnd:
    """`hear` gets each message, `broken` is called once, when the supervisor is gone or sends what is no message."""

    def __init__(self, end: WorkerEnd, hear: Callable[[ToChild], None], broken: Callable[[], None]) -> None:
        self._end, self._hear, self._broken = end, hear, broken
        self._is_broken = self._flushes_soon = self._is_watched = False
        self._emptied: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(end.read_fd, self.listen)

    def is_cut(self) -> bool:
        """Whether the supervisor is gone, whatever of its messages is still unread."""
        return self._is_broken or self._end.is_cut()

    def listen(self) -> None:
        """Take what has come."""
        if self._is_broken:
            return
        messages, broken = self._end.receive()
        for message in messages:
            self._hear(message)
        if broken is not None:
            self._give_up()

    def send(self, message: FromChild) -> None:
        """Raises ChannelBroken when the supervisor is gone."""
        if self._is_broken:
            raise ChannelBroken("the supervisor is gone")
        try:
            self._end.put(message)
        except ChannelBroken:
            self._give_up()
            raise
        if not self._flushes_soon:
            self._flushes_soon = True
            self._loop.call_soon(self._flush)

    async def say(self, message: FromChild) -> None:
        """As `send`; returns once the pipe has it, so that it is heard though this process dies."""
        self.send(message)
        self._flush()
        await self.emptied()

    async def emptied(self) -> None:
        """Until the pipe has all that was sent. Raises ChannelBroken."""
        while self._end.has_unsent and not self._is_broken:
            self._emptied = self._emptied or self._loop.create_future()
            await asyncio.shield(self._emptied)
        if self._is_broken:
            raise ChannelBroken("the supervisor is gone")

    def _flush(self) -> None:
        self._flushes_soon = False
        if self._is_broken:
            return
        try:
            self._end.flush()
        except ChannelBroken:
            self._give_up()
            return
        self._watch(self._end.has_unsent)
        if not self._end.has_unsent:
            self._tell_emptied()

    def _watch(self, wants_to_write: bool) -> None:
        if wants_to_write != self._is_watched:
            self._is_watched = wants_to_write
            if wants_to_write:
                self._loop.add_writer(self._end.write_fd, self._flush)
            else:
                self._loop.remove_writer(self._end.write_fd)

    def _tell_emptied(self) -> None:
        if self._emptied is not None:
            self._emptied.set_result(None)
            self._emptied = None

    def _give_up(self) -> None:
        self._is_broken = True
        self._loop.remove_reader(self._end.read_fd)
        self._watch(False)
        self._tell_emptied()
        self._broken()
