"""An answer on its way over a link: asked for at dispatch, awaited before its first output, acknowledged at its end."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from answers.address import Address
from answers.endpoint import NotDelivered, NoWebSocket, RequesterGone, RequesterUnknown
from answers.links import Links, Talk
from answers.run import Run
from answers.streams import Streams
from answers.websocket import CONNECTED_WITHIN_S, SENT_WITHIN_S

REPLY_WITHIN_S = 5.0
TAKEN_WITHIN_S = 10.0
BUSY_FOR_S = 2.0  # a gateway notices within milliseconds that a dead child's link has ended
BUSY_PAUSE_S = 0.1
_ASKED_WITHIN_S = 2 * CONNECTED_WITHIN_S  # another's connecting, then its own
_OPEN_WITHIN_S = 2 * REPLY_WITHIN_S + _ASKED_WITHIN_S


class LinkDelivery:
    """A sink for a stream, or for one whole answer. Where the link is lost before the first output and no other is to be
    had, the answer is kept, and `finish` tries to deliver it: what was computed is not computed again.

    insists: it is a refusal, see Talk.
    """

    def __init__(self, address: Address, links: Links, run: Run, *, insists: bool) -> None:
        self._address, self._links, self._run, self._insists = address, links, run, insists
        identifier = msgspec.json.encode(address.request_id)
        self._head = b'{"request_id":' + identifier + b',"end":false,"data":'
        self._last = b'{"request_id":' + identifier + b',"end":true}'
        self._last_head = b'{"request_id":' + identifier + b',"end":true,"data":'
        self._whole = b""
        self._talk: Talk | None = None
        self._kept: list[bytes] = []
        self._is_keeping = self._is_flowing = False

    def ask(self) -> None:
        """Say `begin`; its reply is awaited before the first output only. Raises NoWebSocket where no link is offered."""
        self._run.step(_ASKED_WITHIN_S)
        try:
            self._begin()
        except NoWebSocket:
            raise
        except NotDelivered:
            return  # tried again when there is something to deliver

    def await_reply(self) -> None:
        """Before anything is computed, where it may not be wanted. Raises RequesterGone, AnotherAnswers."""
        try:
            self._reply()
        except NotDelivered:
            return

    def chunk(self, data: bytes) -> None:
        frame = self._head + data + b"}"
        if self._is_flowing:
            self._flow(frame)
        elif self._is_keeping or not self._has_flowed(frame):
            self._kept.append(frame)

    def whole(self, data: bytes) -> None:
        self._whole = data
        self._last = self._last_head + data + b"}"

    @property
    def carrier(self) -> Streams | None:
        return self._talk.streams if self._is_flowing and self._talk is not None else None

    def fail(self, error: dict[str, Any]) -> None:
        """The last frame, or the only one, will carry the error."""
        self.whole(msgspec.json.encode({"error": error}))

    @property
    def answer(self) -> bytes:
        return b"\n".join([*self._kept, self._last]) if self._address.stream else self._whole

    def finish(self) -> None:
        """The end frame, and its receipt. Raises RequesterGone, AnotherAnswers, RequesterUnknown, NotDelivered; may be called
        again after NotDelivered."""
        try:
            if not self._is_flowing:
                self._open()
                self._flow_kept()
            self._end()
        finally:
            self._run.rest()

    def cut(self, error: dict[str, Any]) -> None:
        """This process ends: say so where the requester has seen a part. Raises what `finish` raises."""
        if self._is_flowing:
            self.fail(error)
            self._end(though_ended=True)

    def abandon(self) -> None:
        if self._talk is not None:
            self._talk.leave()
            self._talk = None

    # the first output

    def _has_flowed(self, frame: bytes) -> bool:
        """False: there is no link to be had now, and the frame is still to be delivered."""
        try:
            self._open()
            self._flow(frame)
            return True
        except NotDelivered:
            self._is_keeping = True
            return False

    def _open(self) -> None:
        """Until the gateway says go. Raises RequesterGone, AnotherAnswers, RequesterUnknown, NotDelivered."""
        if not (self._address.stream or self._insists) and self._talk is not None and not self._talk.is_lost:
            self._run.check()
            return  # the receipt of a whole answer says as much
        give_up_at_s = time.monotonic() + BUSY_FOR_S
        while self._reply() == "busy":
            if time.monotonic() > give_up_at_s:
                raise RequesterUnknown("the gateway counts another attempt as answering")
            time.sleep(BUSY_PAUSE_S)
            self._begin()
        if self._address.stream:
            self._run.begin()

    def _reply(self) -> str:
        """To `begin`, said anew where its link was lost. Raises NotDelivered, and what `gone` and `busy` end the run with."""
        self._run.step(_OPEN_WITHIN_S)
        reply = self._awaited() if self._talk is not None else ""
        if not reply and (self._talk is None or self._talk.is_lost):
            self._begin()
            reply = self._awaited()
        if not reply:
            raise NotDelivered("the gateway does not say whether to answer")
        return reply

    def _awaited(self) -> str:
        """"" where the link is lost, or says nothing in time."""
        talk = self._talk
        assert talk is not None
        self._run.wait(lambda: talk.reply or talk.is_lost, REPLY_WITHIN_S)
        self._run.check()
        return "" if talk.is_lost else talk.reply

    def _begin(self) -> None:
        self.abandon()
        self._talk = self._links.to(self._address.link).begin(self._run, self._address.attempt, insists=self._insists)

    # what follows

    def _flow(self, frame: bytes) -> None:
        """Raises RequesterGone once something is out, NotDelivered before."""
        if self._run.ended is not None:
            raise self._run.ended
        assert self._talk is not None
        self._run.step(SENT_WITHIN_S)
        try:
            self._talk.send(frame)
        except OSError as error:
            raise self._lost(str(error)) from None
        if not self._is_flowing:
            self._is_flowing = self._talk.flows = True
            if self._talk.is_lost:  # before its reader could know that something is out
                raise self._lost("the link was lost behind the first frame")

    def _flow_kept(self) -> None:
        for frame in self._kept:
            self._flow(frame)

    def _end(self, *, though_ended: bool = False) -> None:
        talk = self._talk
        assert talk is not None
        self._run.step(SENT_WITHIN_S + TAKEN_WITHIN_S)
        try:
            talk.send(self._last)
        except OSError as error:
            raise self._lost(str(error)) from None
        self._run.wait(lambda: talk.receipt or talk.is_lost, TAKEN_WITHIN_S, though_ended=though_ended)
        if talk.receipt == "taken":
            return
        self._run.check()  # first: another attempt's taking over is not a requester's leaving
        if talk.receipt == "gone":
            raise RequesterGone("nobody was there to take the answer")
        raise self._lost("the gateway did not take the answer")

    def _lost(self, why: str) -> Exception:
        """A stream that was begun is ended by the gateway itself; anything else may be delivered over another link."""
        if self._is_flowing:
            return RequesterGone(why)
        self.abandon()
        return NotDelivered(why)
