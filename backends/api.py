"""The API backend: any server that speaks OpenAI's chat completions over HTTP."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from backends import chunks
from backends.base import Account, Call, Sink
from backends.body import Body, Habits
from backends.sse import EventReader, EventTooLong
from backends.transport import MAX_ERROR_BODY_BYTES, Response, Transport, UpstreamFailed
from errors import Failure, Scope, verdict

if TYPE_CHECKING:
    from config import Settings

MAX_WHOLE_BYTES = 64 << 20
TOLD_WITHIN_S = 2.0  # before its time is over, a requester that waits for all of an answer is told that it has no end
DONE_WITHIN_S = 5.0  # after the last finish_reason; the usage comes in between
END_WITHIN_S = 0.3  # after [DONE]; a connection that did not end by then is not used again


def completions_url(api_url: str) -> str:
    """`https://host`, `https://host/v1` and `https://host/v1/chat/completions` → the last form."""
    parts = urlsplit(api_url)
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path = (path or "/v1") + "/chat/completions"
    return urlunsplit(parts._replace(path=path))


class ApiBackend:
    """`most_rested`: how many connections are kept. `habits`: how the upstream wants to be asked, if that is known."""

    def __init__(self, settings: Settings, *, api_url: str, api_key: str, most_rested: int, habits: Habits | None = None) -> None:
        self._settings = settings
        self._habits = habits or Habits()
        headers = {"User-Agent": "workernode", "Authorization": f"Bearer {api_key}"} if api_key else {"User-Agent": "workernode"}
        self._transport = Transport(
            completions_url(api_url), headers, most_rested=most_rested,
            connect_timeout_s=settings.connect_timeout_s, ca_bundle=settings.ca_bundle or None,
        )

    async def start(self) -> int:
        return 0

    async def reach(self) -> None:
        await self._transport.connect()

    async def watch(self) -> None:
        return

    def pids(self) -> list[int]:
        return []

    def stop(self) -> None:
        self._transport.close()

    async def answer(self, call: Call, sink: Sink, account: Account) -> None:
        try:
            await self._ask(call, Body(call.data), sink, account)
        except chunks.Garbled as garbled:
            raise UpstreamFailed(Failure("garbled", str(garbled))) from None

    async def _ask(self, call: Call, body: Body, sink: Sink, account: Account) -> None:
        """Ask as the upstream is known to want it; where it refuses the form alone, try another, and keep to what worked."""
        habits = self._habits
        while True:
            stream = call.stream if habits.stream is None else habits.stream
            account.sent(body.prompt_characters())
            answer_by_s = min(time.monotonic() + self._patience_s(stream), call.deadline_at_s)
            data = body.for_upstream(model=self._settings.upstream_model, stream=stream, habits=habits)
            asks = account.on_asked if call.stream else None
            with await self._transport.post(data, answer_by_s=answer_by_s, traceparent=call.traceparent, asks=asks) as response:
                account.head(response.headers)
                if response.status == 200:
                    await self._relay(call, body, response, sink, account, answer_by_s)
                    self._habits = replace(habits, stream=True) if response.is_event_stream and not stream else habits
                    return
                failure = await self._read_failure(response)
            habits = _other_habits(habits, failure, stream)

    def _patience_s(self, stream: bool) -> float:
        """Until the first output. A whole answer comes only when its last token is done."""
        first_s = self._settings.first_token_timeout_s
        return first_s if stream else max(first_s, self._settings.request_ttl_s)

    async def _read_failure(self, response: Response) -> Failure:
        body = await response.read_all(time.monotonic() + self._settings.read_timeout_s, MAX_ERROR_BODY_BYTES)
        kind = response.headers.get("content-type", "no content type").split(";")[0]
        return Failure("http", f"HTTP status {response.status} with {kind}", response.status, body, response.headers)

    def _end_within(self, call: Call) -> tuple[float, str]:
        """Who waits for a whole answer waits as long as the request has time; who sees a stream, as long as it goes on."""
        now_s, most_s = time.monotonic(), self._settings.generation_timeout_s
        left_s = call.deadline_at_s - now_s
        left_s -= min(TOLD_WITHIN_S, left_s / 10)
        if not call.stream and left_s < most_s:
            return now_s + left_s, "the time of its request was over"
        return now_s + most_s, f"it went on for {most_s:g} s, GENERATION_TIMEOUT_S"

    async def _relay(self, call: Call, body: Body, response: Response, sink: Sink, account: Account, answer_by_s: float) -> None:
        if response.is_event_stream:
            patience = _Patience(answer_by_s, self._settings.read_timeout_s, *self._end_within(call))
            await _StreamRelay(body, response, sink, account, patience, streams=call.stream).run()
        else:
            whole = await response.read_all(answer_by_s, MAX_WHOLE_BYTES)
            await relay_whole(whole, call, body, sink, account)
        account.close()


def _other_habits(habits: Habits, failure: Failure, streamed: bool) -> Habits:
    """Raises UpstreamFailed where the form of the request is not what was refused, or no other form is left."""
    judged = verdict(failure)
    if judged.scope is Scope.REQUEST:
        other = habits.after_refusal(str(judged.error["message"]), judged.error["param"], streamed)
        if other is not None:
            return other
    raise UpstreamFailed(failure)


async def relay_whole(whole: bytes, call: Call, body: Body, sink: Sink, account: Account) -> None:
    """A whole completion to a requester of either kind. Raises Garbled, UpstreamFailed."""
    whole = chunks.compact(whole)
    peek = chunks.look(whole)
    if peek.failed:
        raise UpstreamFailed(Failure("stream_error", "an error object with status 200", None, whole))
    if not peek.choices:
        raise chunks.Garbled(f"a completion without choices: {whole[:200]!r}")
    if any(choice.message is None for choice in peek.choices):
        raise chunks.Garbled(f"a choice without a message: {whole[:200]!r}")
    account.upstream_model = peek.model_name
    account.output(chunks.text_of(peek))
    if peek.reported:
        account.reported(peek.reported)
    if call.stream:
        for chunk in chunks.to_chunks(whole, include_usage=body.wants_usage):
            await sink.chunk(chunk)
    else:
        sink.whole(whole)


@dataclass(frozen=True)
class _Patience:
    """Until when (monotonic) the first output may take, how long the next, until when all of it, and what to say then."""

    first_by_s: float
    read_timeout_s: float
    end_by_s: float
    words: str

    def check(self, now_s: float) -> None:
        """Raises UpstreamFailed."""
        if now_s > self.end_by_s:
            raise UpstreamFailed(Failure("endless", self.words))


class _StreamRelay:
    """The events of an upstream's stream, each passed on as it comes, to a requester of either kind."""

    def __init__(
        self, body: Body, response: Response, sink: Sink, account: Account, patience: _Patience, *, streams: bool
    ) -> None:
        self._response, self._sink, self._account = response, sink, account
        self._due_s, self._patience = patience.first_by_s, patience
        self._reader = EventReader()
        self._is_over = False
        self._wants_usage = body.wants_usage
        self._assembler = None if streams else chunks.Assembler()
        self._seen: set[int | None] = set()  # choices by their index
        self._finished: set[int | None] = set()
        self._done = False  # [DONE] came
        self._left: Iterable[bytes] = ()  # of a piece that was taken from the loop
        self._error: Exception | None = None  # met there

    async def run(self) -> None:
        """Raises UpstreamFailed, Garbled and what the sink raises."""
        while not self._is_over:
            for chunk in self._take(await self._next_piece()):
                await self._pass_on(chunk)
            if not self._is_over:
                await self._carry()
        await self._end()

    async def _pass_on(self, chunk: bytes) -> None:
        if not self._sink.put(chunk):
            await self._sink.chunk(chunk)

    async def _carry(self) -> None:
        """The short way, while nobody has to be waited for. Returns with all passed on that was taken."""
        try:
            await self._response.hand_to(self._turn, self._due_s)
        except UpstreamFailed:
            if not self._is_complete():
                raise
        left, self._left = self._left, ()
        for chunk in left:
            await self._pass_on(chunk)
        if self._error is not None:
            raise self._error

    def _turn(self, piece: bytes) -> float:
        """One piece, from the loop itself. Returned: until when the next may take; 0.0: this way is over."""
        try:
            taken = self._take(piece)
            for chunk in taken:
                if not self._sink.put(chunk):
                    self._left = itertools.chain((chunk,), taken)
                    return 0.0
        except Exception as error:
            self._error = error
            return 0.0
        return 0.0 if self._is_over else self._due_s

    def _take(self, piece: bytes) -> Iterator[bytes]:
        """The chunks for the requester. A comment is no progress: some send them for minutes."""
        events = self._events(piece)
        for event in events:
            data = chunks.compact(event)
            if data == b"[DONE]":
                self._done = True
                break
            if data and (chunk := self._chunk(data)) is not None:
                yield chunk
        if events and piece:
            now_s, is_complete = time.monotonic(), self._is_complete()
            if not is_complete:
                self._patience.check(now_s)
            self._due_s = now_s + (DONE_WITHIN_S if is_complete else self._patience.read_timeout_s)
        self._is_over = self._done or not piece

    async def _next_piece(self) -> bytes:
        try:
            return await self._response.read_some(self._due_s)
        except UpstreamFailed:
            if self._is_complete():
                return b""  # only [DONE] was missing, and some never send it
            raise

    def _events(self, piece: bytes) -> list[bytes]:
        try:
            return self._reader.feed(piece) if piece else self._reader.end()
        except EventTooLong as error:
            raise UpstreamFailed(Failure("garbled", str(error))) from None

    def _is_complete(self) -> bool:
        """Every choice that began has its finish_reason."""
        return bool(self._seen) and len(self._finished) == len(self._seen)

    async def _end(self) -> None:
        if not self._seen or not (self._done or self._is_complete()):
            raise UpstreamFailed(Failure("cut", "the stream ended with neither finish_reason nor [DONE]"))
        if self._assembler is not None:
            self._sink.whole(self._assembler.completion())
        if self._done:
            await self._response.read_to_end(time.monotonic() + END_WITHIN_S)

    def _chunk(self, data: bytes) -> bytes | None:
        """What of it is for the requester."""
        peek = chunks.look(data)
        if peek.failed:
            raise UpstreamFailed(Failure("stream_error", "an error inside the stream", None, data))
        self._take_account(peek)
        if self._assembler is not None:
            self._assembler.add(data)
            return None
        return chunks.for_requester(data, peek, wants_usage=self._wants_usage)

    def _take_account(self, peek: chunks.Peek) -> None:
        if self._account.upstream_model is None:  # each chunk says it again
            self._account.upstream_model = peek.model_name
        if peek.choices:
            self._account.output(chunks.text_of(peek))
            for choice in peek.choices:
                self._seen.add(choice.index)
                if choice.finish_reason:
                    self._finished.add(choice.index)
        if reported := peek.reported:
            self._account.reported(reported)
