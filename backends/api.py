"""The API backend: any server that speaks OpenAI's chat completions over HTTP."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import msgspec

from backends import chunks
from backends.base import Account, Call, Sink
from backends.body import Body, Habits
from backends.sse import EventReader, EventTooLong
from backends.transport import MAX_ERROR_BODY_BYTES, Response, Transport, UpstreamFailed
from errors import Failure, Scope, verdict

if TYPE_CHECKING:
    from config import Settings

MAX_WHOLE_BYTES = 64 << 20


def completions_url(api_url: str) -> str:
    """`https://host`, `https://host/v1` and `https://host/v1/chat/completions` → the last form."""
    parts = urlsplit(api_url)
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path = (path or "/v1") + "/chat/completions"
    return urlunsplit(parts._replace(path=path))


class ApiBackend:
    """`threads`: how many calls run at once. `habits`: how the upstream wants to be asked, if that is known."""

    def __init__(self, settings: Settings, *, api_url: str, api_key: str, threads: int, habits: Habits | None = None) -> None:
        self._settings = settings
        self._habits = habits or Habits()
        headers = {"User-Agent": "workernode", "Authorization": f"Bearer {api_key}"} if api_key else {"User-Agent": "workernode"}
        self._transport = Transport(
            completions_url(api_url), headers, pool_size=threads,
            connect_timeout_s=settings.connect_timeout_s, ca_bundle=settings.ca_bundle or None,
        )

    def start(self) -> int:
        return 0

    def check(self) -> None:
        return

    def pids(self) -> list[int]:
        return []

    def stop(self) -> None:
        self._transport.close()

    def answer(self, call: Call, sink: Sink, account: Account) -> None:
        try:
            self._ask(call, Body(call.data), sink, account)
        except chunks.Garbled as garbled:
            raise UpstreamFailed(Failure("garbled", str(garbled))) from None

    def _ask(self, call: Call, body: Body, sink: Sink, account: Account) -> None:
        """Ask as the upstream is known to want it; where it refuses the form alone, learn and ask once more."""
        while True:
            habits = self._habits
            stream = call.stream if habits.stream is None else habits.stream
            patience_s = self._settings.first_token_timeout_s if stream else max(self._settings.first_token_timeout_s, self._settings.request_ttl_s)
            account.sent(body.prompt_characters())
            answer_by_s = time.monotonic() + patience_s
            data = body.for_upstream(model=self._settings.upstream_model, stream=stream, habits=habits)
            with self._transport.post(data, answer_within_s=patience_s) as response:
                if response.status == 200:
                    return self._relay(call, body, response, sink, account, answer_by_s)
                failure = self._read_failure(response)
            error = verdict(failure)
            learned = habits.after_refusal(str(error.error["message"]), error.error["param"], stream) if error.scope is Scope.REQUEST else None
            if learned is None:
                raise UpstreamFailed(failure)
            self._habits = learned

    def _read_failure(self, response: Response) -> Failure:
        body = response.read_all(time.monotonic() + self._settings.read_timeout_s, MAX_ERROR_BODY_BYTES)
        kind = response.headers.get("content-type", "no content type").split(";")[0]
        return Failure("http", f"HTTP status {response.status} with {kind}", response.status, body, response.headers)

    def _relay(self, call: Call, body: Body, response: Response, sink: Sink, account: Account, answer_by_s: float) -> None:
        if response.is_event_stream:
            relay = _StreamRelay(call, body, sink, account)
            relay.run(response, answer_by_s, self._settings.read_timeout_s)
        else:
            whole = response.read_all(answer_by_s, MAX_WHOLE_BYTES)
            relay_whole(whole, call, body, sink, account)
        account.close()


def relay_whole(whole: bytes, call: Call, body: Body, sink: Sink, account: Account) -> None:
    """A whole completion to a requester of either kind. Raises Garbled, UpstreamFailed."""
    peek = chunks.look(whole)
    if peek.error is not None and bytes(peek.error) != b"null":
        raise UpstreamFailed(Failure("stream_error", "an error object with status 200", None, whole))
    if not peek.choices:
        raise chunks.Garbled(f"a completion without choices: {whole[:200]!r}")
    account.upstream_model = peek.model if isinstance(peek.model, str) else None
    account.output(chunks.text_of(peek))
    if peek.reported:
        account.reported(peek.reported)
    if call.stream:
        for chunk in chunks.to_chunks(whole, include_usage=body.wants_usage):
            sink.chunk(chunk)
    else:
        sink.whole(chunks.compact(whole))


class _StreamRelay:
    """The events of an upstream's stream, each passed on as it comes, to a requester of either kind."""

    def __init__(self, call: Call, body: Body, sink: Sink, account: Account) -> None:
        self._sink, self._account = sink, account
        self._wants_usage = body.wants_usage
        self._assembler = None if call.stream else chunks.Assembler()
        self._finished = False

    def run(self, response: Response, first_by_s: float, read_timeout_s: float) -> None:
        """Raises UpstreamFailed, Garbled and what the sink raises. A comment is no progress: some send them for minutes."""
        reader, deadline_s = EventReader(), first_by_s
        while True:
            piece = response.read_some(deadline_s)
            events = self._events(reader, piece)
            if b"[DONE]" in events:
                self._pass_on(events[: events.index(b"[DONE]")])
                response.read_to_end(time.monotonic() + 1)
                break
            self._pass_on(events)
            if not piece:
                self._end_of_input()
                break
            if events:
                deadline_s = time.monotonic() + read_timeout_s
        if self._assembler is not None:
            self._sink.whole(self._assembler.completion())

    @staticmethod
    def _events(reader: EventReader, piece: bytes) -> list[bytes]:
        try:
            return reader.feed(piece) if piece else reader.end()
        except EventTooLong as error:
            raise UpstreamFailed(Failure("garbled", str(error))) from None

    def _pass_on(self, events: list[bytes]) -> None:
        for event in events:
            if event.strip():
                self._chunk(chunks.compact(event))

    def _end_of_input(self) -> None:
        if not self._finished:
            raise UpstreamFailed(Failure("cut", "the stream ended with neither finish_reason nor [DONE]"))

    def _chunk(self, data: bytes) -> None:
        peek = chunks.look(data)
        if peek.error is not None and bytes(peek.error) != b"null":
            raise UpstreamFailed(Failure("stream_error", "an error inside the stream", None, data))
        self._take_account(peek)
        if self._assembler is not None:
            self._assembler.add(data)
        elif self._wants_usage or peek.usage is msgspec.UNSET:
            self._sink.chunk(data)
        elif peek.choices:
            self._sink.chunk(chunks.without_usage(data))
        # else: the chunk that only brings the usage, which the node asked for and the requester did not

    def _take_account(self, peek: chunks.Peek) -> None:
        if isinstance(peek.model, str) and peek.model:
            self._account.upstream_model = peek.model
        if peek.choices:
            self._account.output(chunks.text_of(peek))
            self._finished = self._finished or any(choice.finish_reason for choice in peek.choices)
        if peek.reported:
            self._account.reported(peek.reported)
