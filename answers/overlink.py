"""An answer on its way over a link: asked for at dispatch, awaited before its first output, acknowledged at its end."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from answers.address import Address
from answers.endpoint import NotDelivered, NoWebSocket, RequesterGone, RequesterUnknown
from answers.links import Links, Talk
from answers.run import Run

REPLY_WITHIN_S = 5.0
TAKEN_WITHIN_S = 10.0
BUSY_FOR_S = 2.0  # a gateway notices within milliseconds that a dead child's link has ended
BUSY_PAUSE_S = 0.1


class LinkDelivery:
    """A sink for a stream, or for one whole answer. Where the link is lost before the first output and no other is to be
    had, the answer is kept, and `finish` tries to deliver it: what was computed is not computed again.

    insists: it is a refusal, see Talk.
    """

    is_fenced = True

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

    async def ask(self) -> None:
        """Say `begin`; its reply is awaited before the first output only. Raises NoWebSocket where no link is offered."""
        try:
            await self._begin()
        except NoWebSocket:
            raise
        except NotDelivered:
            return  # tried again when there is something to deliver

    async def await_reply(self) -> None:
        """Before anything is computed, where it may not be wanted. Raises RequesterGone, AnotherAnswers."""
        try:
            await self._reply()
        except NotDelivered:
            return

    def put(self, data: bytes) -> bool:
        run = self._run
        if not self._is_flowing or self._talk is None or run.ended is not None or run.lease.is_in_doubt():
            return False
        return self._talk.put(self._head + data + b"}")

    async def chunk(self, data: bytes) -> None:
        frame = self._head + data + b"}"
        if self._is_flowing:
            await self._flow(frame)
        elif self._is_keeping or not await self._has_flowed(frame):
            self._kept.append(frame)

    def whole(self, data: bytes) -> None:
        self._whole = data
        self._last = self._last_head + data + b"}"

    def fail(self, error: dict[str, Any]) -> None:
        """The last frame, or the only one, will carry the error."""
        self.whole(msgspec.json.encode({"error": error}))

    @property
    def answer(self) -> bytes:
        return b"\n".join([*self._kept, self._last]) if self._address.stream else self._whole

    async def finish(self) -> None:
        """The end frame, and its receipt. Raises RequesterGone, AnotherAnswers, RequesterUnknown, NotDelivered; may be called
        again after NotDelivered."""
        if not self._is_flowing:
            await self._open()
            await self._flow_kept()
        await self._end()

    async def cut(self, error: dict[str, Any]) -> None:
        """This process ends: say so where the requester has seen a part. Raises what `finish` raises."""
        if not self._is_flowing:
            raise NotDelivered("nothing was said yet")
        self.fail(error)
        await self._end()

    def abandon(self) -> None:
        if self._talk is not None:
            self._talk.leave()
            self._talk = None

    # the first output

    async def _has_flowed(self, frame: bytes) -> bool:
        """False: there is no link to be had now, and the frame is still to be delivered."""
        try:
            await self._open()
            await self._flow(frame)
            return True
        except NotDelivered:
            self._is_keeping = True
            return False

    async def _open(self) -> None:
        """Until the gateway says go. Raises RequesterGone, AnotherAnswers, RequesterUnknown, NotDelivered."""
        if not (self._address.stream or self._insists) and self._talk is not None and not self._talk.is_lost:
            await self._run.check()
            return  # the receipt of a whole answer says as much
        give_up_at_s = time.monotonic() + BUSY_FOR_S
        while await self._reply() == "busy":
            if time.monotonic() > give_up_at_s:
                raise RequesterUnknown("the gateway counts another attempt as answering")
            await asyncio.sleep(BUSY_PAUSE_S)
            await self._begin()
        if self._address.stream:
            await self._run.begin()

    async def _reply(self) -> str:
        """To `begin`, said anew where its link was lost. Raises NotDelivered, and what `gone` and `busy` end the run with."""
        reply = "" if self._talk is None else await self._talk.replied(REPLY_WITHIN_S)
        if not reply and (self._talk is None or self._talk.is_lost):
            reply = await (await self._begin()).replied(REPLY_WITHIN_S)
        if not reply:
            raise NotDelivered("the gateway does not say whether to answer")
        return reply

    async def _begin(self) -> Talk:
        self.abandon()
        link = await self._links.to(self._address.link)
        self._talk = await link.begin(self._run, self._address.attempt, insists=self._insists)
        return self._talk

    # what follows

    async def _flow(self, frame: bytes) -> None:
        """Raises RequesterGone once something is out, NotDelivered before."""
        await self._run.check()
        assert self._talk is not None
        try:
            await self._talk.send(frame)
        except OSError as error:
            raise self._lost(str(error)) from None
        if not self._is_flowing:
            self._is_flowing = self._talk.flows = True
            if self._talk.is_lost:  # before it could know that something is out
                raise self._lost("the link was lost behind the first frame")

    async def _flow_kept(self) -> None:
        for frame in self._kept:
            await self._flow(frame)

    async def _end(self) -> None:
        talk = self._talk
        assert talk is not None
        try:
            await talk.send(self._last)
        except OSError as error:
            raise self._lost(str(error)) from None
        receipt = await talk.received(TAKEN_WITHIN_S)
        if receipt == "taken":
            return
        if self._run.ended is not None:  # first: another attempt's taking over is not a requester's leaving
            raise self._run.ended
        if receipt == "gone":
            raise RequesterGone("nobody was there to take the answer")
        raise self._lost("the gateway did not take the answer")

    def _lost(self, why: str) -> Exception:
        """A stream that was begun is ended by the gateway itself; anything else may be delivered over another link."""
        if self._is_flowing:
            return RequesterGone(why)
        self.abandon()
        return NotDelivered(why)
