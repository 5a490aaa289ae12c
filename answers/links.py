"""Links to our gateways (docs/api.md): one WebSocket for each address, shared by all of a child's requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
from loguru import logger

from answers.dial import Dialer
from answers.endpoint import AnotherAnswers, NotDelivered, NoWebSocket, RequesterGone, websocket_url
from answers.run import Run
from answers.websocket import LATE_S, WebSocket, open_socket
from ipc.pace import Pace

UNREACHABLE_FOR_S = 1.0  # so that not each of a hundred requests waits for the same gateway
NOT_OFFERED_FOR_S = 60.0
PING_EACH_S = 5.0  # of silence
SILENT_AFTER_S = 15.0  # the gateway's host is gone, or the way to it
MAX_PLACES = 64
MAX_TOGETHER_BYTES = 256 << 10


class _Said(msgspec.Struct):
    type: str = ""
    request_id: str = ""
    attempt: int | None = None


_decode = msgspec.json.Decoder(_Said).decode


class Talk:
    """What one link says of one request.

    insists: a refusal, which another attempt's death is about, so that `busy` may pass. flows: output went out.
    """

    def __init__(self, link: Link, run: Run, attempt: int, insists: bool) -> None:
        self._link, self.run, self._attempt, self._insists = link, run, attempt, insists
        self.reply = ""  # to `begin`: go, gone, busy
        self.receipt = ""  # to the end frame: taken, gone
        self.flows = False
        self._news: asyncio.Future[None] | None = None

    @property
    def is_lost(self) -> bool:
        return not self._link.is_open

    async def send(self, frame: bytes) -> None:
        """Raises OSError when the link is lost."""
        await self._link.send(frame)

    def put(self, frame: bytes) -> bool:
        """As `send`, where nothing has to be waited for. False: it has to, or the link is lost."""
        return self._link.put(frame)

    async def begin(self) -> None:
        """Ask whether to answer. Raises OSError."""
        self.reply = ""
        await self.send(msgspec.json.encode({"type": "begin", "request_id": self.run.request_id, "attempt": self._attempt}))

    async def replied(self, within_s: float) -> str:
        """To `begin`; "" where the link is lost, or says nothing in time."""
        await self._until(lambda: self.reply, within_s)
        return "" if self.is_lost else self.reply

    async def received(self, within_s: float) -> str:
        """The receipt of the end frame; "" likewise."""
        await self._until(lambda: self.receipt, within_s)
        return self.receipt

    def leave(self) -> None:
        self._link.forget(self)

    async def _until(self, found: Callable[[], str], within_s: float) -> None:
        give_up_at_s = time.monotonic() + within_s
        while not found() and not self.is_lost and (left_s := give_up_at_s - time.monotonic()) > 0:
            loop = asyncio.get_running_loop()
            self._news = loop.create_future()
            timer = loop.call_later(left_s, self._tell)
            try:
                await self._news
            finally:
                timer.cancel()

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    # by the link

    def hear(self, said: _Said) -> None:
        if said.attempt is None:
            self.receipt = said.type
        elif said.attempt == self._attempt:
            self._hear_reply(said.type)
        self._tell()

    def _hear_reply(self, reply: str) -> None:
        self.reply = reply
        if reply == "gone":
            self.run.end(RequesterGone("nobody waits for it at the gateway"))
        elif reply == "busy" and not self._insists:
            self.run.end(AnotherAnswers("another attempt's answer is with the requester already"))

    def lose(self) -> None:
        if self.flows and not self.receipt:
            self.run.end(RequesterGone("the link was lost in the middle of the stream"))
        self._tell()


class Link:
    """One open link."""

    def __init__(self, opened: WebSocket, cancelled: Callable[[str], None], pace: Pace) -> None:
        self._cancelled, self._socket, self._pace = cancelled, opened, pace
        self._talks: dict[str, Talk] = {}
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._loop = asyncio.get_running_loop()
        opened.heard, opened.lost = self._hear, self._lose
        self._look_later()

    @property
    def is_open(self) -> bool:
        return self._socket.is_open

    async def begin(self, run: Run, attempt: int, *, insists: bool) -> Talk:
        """Raises NotDelivered."""
        talk = Talk(self, run, attempt, insists)
        if (before := self._talks.get(run.request_id)) is not None:
            self.forget(before)
        self._talks[run.request_id] = talk
        self._pace.in_flight += 1
        try:
            await talk.begin()
            return talk
        except BaseException as error:
            talk.leave()
            if isinstance(error, OSError):
                raise NotDelivered(f"the link was lost: {error}") from None
            raise

    async def send(self, frame: bytes) -> None:
        """Raises OSError, and the link is lost for everybody."""
        while not self.put(frame):  # others that waited may have filled it again
            await self._socket.until_writable()
            if not self._socket.is_open:
                raise ConnectionResetError("the link was lost")

    def put(self, frame: bytes) -> bool:
        """With all others of this turn of the loop: several frames in one text, one a line. False: the link is full, or lost."""
        if self._socket.is_full or not self._socket.is_open:
            return False
        if self._unsent_bytes + len(frame) > MAX_TOGETHER_BYTES:
            self._flush()
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(frame)
        self._unsent_bytes += len(frame)
        return True

    def _flush(self) -> None:
        if not self._unsent:
            return
        text, self._unsent, self._unsent_bytes = b"\n".join(self._unsent), [], 0
        try:
            self._socket.put(text)
        except OSError:
            return  # whoever waits for a reply is told when it is lost
        self._socket.flush()
        self._pace.rest_soon()

    def forget(self, talk: Talk) -> None:
        if self._talks.get(talk.run.request_id) is talk:
            del self._talks[talk.run.request_id]
            self._pace.in_flight -= 1

    def _look_later(self) -> None:
        due_s = time.monotonic() + PING_EACH_S
        asyncio.get_running_loop().call_later(PING_EACH_S, self._look, due_s)

    def _look(self, due_s: float) -> None:
        """Silence is broken by a ping; where that has no pong, nothing will come any more."""
        if not self.is_open:
            return
        now_s = time.monotonic()
        silent_s = now_s - self._socket.heard_s
        if silent_s > SILENT_AFTER_S and now_s - due_s < LATE_S:
            logger.debug("a link was lost: the gateway said nothing for {:g} s", SILENT_AFTER_S)
            self._socket.abandon()
            return
        if silent_s >= PING_EACH_S:
            self._socket.ping()
        self._look_later()

    def _hear(self, text: bytes) -> None:
        for line in text.split(b"\n"):
            self._hear_frame(line)

    def _hear_frame(self, frame: bytes) -> None:
        try:
            said = _decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        talk = self._talks.get(said.request_id)
        if said.type == "cancel":
            self._cancelled(said.request_id)
        elif talk is not None:
            talk.hear(said)

    def _lose(self) -> None:
        for talk in list(self._talks.values()):
            talk.lose()


@dataclass
class _Place:
    """An address, its link, and why there is none until when (monotonic)."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    link: Link | None = None
    why: NotDelivered | None = None
    until_s: float = 0.0

    @property
    def is_over(self) -> bool:
        return not self.lock.locked() and not (self.link and self.link.is_open) and time.monotonic() > self.until_s


class Links:
    """A child's links by address. `cancelled` is told the ids that nobody waits for any more."""

    def __init__(self, dialer: Dialer, cancelled: Callable[[str], None]) -> None:
        self._dialer, self._cancelled = dialer, cancelled
        self._places: dict[str, _Place] = {}
        self.pace = Pace()

    async def to(self, address: str) -> Link:
        """The link to there; whoever asks first connects. Raises NoWebSocket where none is offered, NotDelivered."""
        place = self._place(address)
        if place.link is not None and place.link.is_open:
            return place.link
        async with place.lock:
            if place.link is not None and place.link.is_open:
                return place.link
            if place.why is not None and time.monotonic() < place.until_s:
                raise type(place.why)(str(place.why))  # not the same again: its traceback would grow with every request
            place.link = await self._connected(address, place)
            return place.link

    async def _connected(self, address: str, place: _Place) -> Link:
        try:
            return Link(await open_socket(websocket_url(address), self._dialer), self._cancelled, self.pace)
        except ValueError as error:  # no address at all
            place.why, passing_s = NoWebSocket(f"{address!r}: {error}"), NOT_OFFERED_FOR_S
        except NotDelivered as error:
            place.why, passing_s = error, NOT_OFFERED_FOR_S if isinstance(error, NoWebSocket) else UNREACHABLE_FOR_S
        place.link, place.until_s = None, time.monotonic() + passing_s
        raise place.why

    def _place(self, address: str) -> _Place:
        if address not in self._places and len(self._places) >= MAX_PLACES:
            self._places = {known: place for known, place in self._places.items() if not place.is_over}
        return self._places.setdefault(address, _Place())
