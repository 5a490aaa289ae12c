"""Links to our gateways (docs/api.md): one WebSocket for each address, shared by all of a child's requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
from loguru import logger
from websockets.frames import Opcode

from answers.dial import Dialer
from answers.endpoint import AnotherAnswers, NotDelivered, NoWebSocket, RequesterGone, websocket_url
from answers.run import Run
from answers.streams import Streams
from answers.websocket import FrameSocket

UNREACHABLE_FOR_S = 1.0  # so that not each of a hundred requests waits for the same gateway
NOT_OFFERED_FOR_S = 60.0
PING_EACH_S = 5.0  # of silence
SILENT_AFTER_S = 15.0  # the gateway's host is gone, or the way to it
MAX_PLACES = 64


class _Said(msgspec.Struct):
    type: str = ""
    request_id: str = ""
    attempt: int | None = None


_decode = msgspec.json.Decoder(_Said).decode


class Talk:
    """What one link says of one request: its reader hears it, the request's worker waits for it on its run.

    insists: a refusal, which another attempt's death is about, so that `busy` may pass. flows: output went out.
    """

    def __init__(self, link: Link, run: Run, attempt: int, insists: bool) -> None:
        self._link, self.run, self._attempt, self._insists = link, run, attempt, insists
        self.reply = ""  # to `begin`: go, gone, busy
        self.receipt = ""  # to the end frame: taken, gone
        self.flows = False

    @property
    def is_lost(self) -> bool:
        return not self._link.is_open

    @property
    def streams(self) -> Streams:
        """Those of this link."""
        return self._link.streams

    def send(self, frame: bytes) -> None:
        """Raises OSError when the link is lost."""
        self._link.send(frame)

    def begin(self) -> None:
        """Ask whether to answer. Raises OSError."""
        self.reply = ""
        self.send(msgspec.json.encode({"type": "begin", "request_id": self.run.request_id, "attempt": self._attempt}))

    def leave(self) -> None:
        self._link.forget(self)

    # by the link's reader

    def hear(self, said: _Said) -> None:
        if said.attempt is None:
            self.receipt = said.type
        elif said.attempt == self._attempt:
            self._hear_reply(said.type)
        self.run.tell()

    def _hear_reply(self, reply: str) -> None:
        self.reply = reply
        if reply == "gone":
            self.run.end(RequesterGone("nobody waits for it at the gateway"))
        elif reply == "busy" and not self._insists:
            self.run.end(AnotherAnswers("another attempt's answer is with the requester already"))

    def lose(self) -> None:
        if self.flows and not self.receipt:
            self.run.end(RequesterGone("the link was lost in the middle of the stream"))
        self.run.tell()


class Link:
    """One open link. Any thread sends; a thread of its own reads."""

    def __init__(self, url: str, dialer: Dialer, cancelled: Callable[[str], None]) -> None:
        """Connects. Raises NoWebSocket, NotDelivered."""
        self.is_open = True
        self._cancelled = cancelled
        self._talks: dict[str, Talk] = {}
        self._lock = threading.Lock()
        self._socket = FrameSocket(url, dialer)
        self.streams = Streams(self._flush)
        threading.Thread(target=self._read, name="link", daemon=True).start()

    def begin(self, run: Run, attempt: int, *, insists: bool) -> Talk:
        """Raises NotDelivered."""
        talk = Talk(self, run, attempt, insists)
        with self._lock:
            self._talks[run.request_id] = talk
        try:
            talk.begin()
        except OSError as error:
            talk.leave()
            raise NotDelivered(f"the link was lost: {error}") from None
        return talk

    def send(self, frame: bytes) -> None:
        """Raises OSError, and the link is lost for everybody: half a frame may be out."""
        send = self._socket.put if self.streams.is_turning() else self._socket.send
        try:
            send(frame)
        except OSError:
            self._give_up()
            raise

    def _flush(self) -> None:
        """What all streams had to say in their turns goes out together. Where it fails, the reader tells them."""
        try:
            self._socket.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        self.is_open = False
        self._socket.shut()

    def forget(self, talk: Talk) -> None:
        with self._lock:
            if self._talks.get(talk.run.request_id) is talk:
                del self._talks[talk.run.request_id]

    def _read(self) -> None:
        try:
            self._hear_all()
        except OSError as error:
            logger.debug("a link was lost: {}", error)
        except Exception:
            logger.exception("a link hit a bug of the node")
        finally:
            self._lose()

    def _hear_all(self) -> None:
        """Raises OSError at the link's end, and where nothing comes any more."""
        heard_s = time.monotonic()
        while True:
            frames = self._socket.receive(PING_EACH_S)
            if frames:
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > SILENT_AFTER_S:
                raise TimeoutError(f"the gateway said nothing for {SILENT_AFTER_S:g} s")
            else:
                self._socket.ping()
            for frame in frames:
                if frame.opcode is Opcode.TEXT:
                    self._hear(bytes(frame.data))

    def _hear(self, text: bytes) -> None:
        try:
            said = _decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        with self._lock:
            talk = self._talks.get(said.request_id)
        if said.type == "cancel":
            self._cancelled(said.request_id)
        elif talk is not None:
            talk.hear(said)

    def _lose(self) -> None:
        self.is_open = False
        self.streams.close()
        self._socket.abandon()
        with self._lock:
            talks = list(self._talks.values())
        for talk in talks:
            talk.lose()


@dataclass
class _Place:
    """An address, its link, and why there is none until when (monotonic)."""

    lock: threading.Lock = field(default_factory=threading.Lock)
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
        self._lock = threading.Lock()

    def to(self, address: str) -> Link:
        """The link to there; whoever asks first connects. Raises NoWebSocket where none is offered, NotDelivered."""
        place = self._place(address)
        with place.lock:
            if place.link is not None and place.link.is_open:
                return place.link
            if place.why is not None and time.monotonic() < place.until_s:
                raise type(place.why)(str(place.why))  # not the same again: its traceback would grow with every request
            place.link = self._connected(address, place)
            return place.link

    def _connected(self, address: str, place: _Place) -> Link:
        try:
            return Link(websocket_url(address), self._dialer, self._cancelled)
        except ValueError as error:  # no address at all
            place.why, passing_s = NoWebSocket(f"{address!r}: {error}"), NOT_OFFERED_FOR_S
        except NotDelivered as error:
            place.why, passing_s = error, NOT_OFFERED_FOR_S if isinstance(error, NoWebSocket) else UNREACHABLE_FOR_S
        place.link, place.until_s = None, time.monotonic() + passing_s
        raise place.why

    def _place(self, address: str) -> _Place:
        with self._lock:
            if address not in self._places and len(self._places) >= MAX_PLACES:
                self._places = {known: place for known, place in self._places.items() if not place.is_over}
            return self._places.setdefault(address, _Place())
