"""A real backend child on real links: begin, go, gone, busy, taken, cancel; links that break, and requests that are ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import pytest
from msgspec import structs

from answers import links, pool
from answers.dial import Dialer
from answers.endpoint import RequesterGone
from answers.links import Link, Links
from answers.run import Run
from answers.websocket import WebSocket
from backends import aboard
from backends.aboard import Aboard
from errors import ExitCode, error_object
from ipc.messages import Alive, Begun, Computed, Lease, Outcome, Task
from ipc.pace import Pace
from tests.real.crew import Backends, refuse, settings, task
from tests.real.link_gateway import LinkGateway
from tests.real.loop import on_loop, until
from tests.real.processes import free_port, wait_until
from tests.real.requester import Requester
from tests.real.upstream import Upstream

ERROR = error_object("The request was given up.", "server_error", "given_up")
CANCELLED_WITHIN_S = 0.2


@pytest.fixture
def gateway() -> Iterator[LinkGateway]:
    with LinkGateway() as gateway:
        yield gateway


@pytest.fixture
def child(upstream: Upstream) -> Iterator[Backends]:
    with Backends(settings(upstream.url)) as child:
        yield child


def said(child: Backends, number: int) -> list[str]:
    return [type(message).__name__ for message, _ in child.messages(number)]


def code(outcome: Outcome) -> str | None:
    return outcome.error["code"] if outcome.error else None


def ended_after_s(child: Backends, asked: Task, since_s: float) -> float:
    """Its outcome is `gone`; how long after that."""
    outcome = child.outcome(asked.number)
    at_s = next(at_s for message, at_s in child.messages(asked.number) if isinstance(message, Outcome))
    assert (outcome.end, code(outcome)) == ("gone", "requester_gone")
    return at_s - since_s


# answers


def test_a_stream_goes_over_a_link_at_once(child: Backends, gateway: LinkGateway) -> None:
    assert child.run(task(gateway.url, stream=True)).end == "answered"  # connects
    asked = task(gateway.url, stream=True, attempt=2)
    assert child.run(asked).end == "answered"
    *frames, last = gateway.frames(asked.request_id)
    assert len(frames) == 10 and last == {"request_id": asked.request_id, "end": True}
    assert all(set(frame) == {"request_id", "end", "data"} and frame["end"] is False for frame in frames)
    assert said(child, asked.number) == ["Begun", "Outcome"] and gateway.links == 1
    assert [begin.attempt for begin in gateway.begun(asked.request_id)] == [2]
    assert gateway.seen(asked.request_id)[0].at_s - asked.received_at_s < 0.09  # no wait for a registration


def test_a_whole_answer_goes_over_a_link(child: Backends, gateway: LinkGateway) -> None:
    asked = task(gateway.url, stream=False)
    outcome = child.run(asked)
    (frame,) = gateway.frames(asked.request_id)
    assert (outcome.end, outcome.completion_tokens, frame["end"]) == ("answered", 8, True)
    assert frame["data"]["object"] == "chat.completion" and said(child, asked.number) == ["Outcome"]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_the_last_slot_is_free_before_the_answer_is_delivered(child: Backends, gateway: LinkGateway, stream: bool) -> None:
    asked = msgspec.structs.replace(task(gateway.url, "mock", stream=stream), is_last=True)
    assert child.run(asked).end == "answered"
    assert sorted(said(child, asked.number)) == [*(["Begun"] if stream else []), "Computed", "Outcome"]
    assert said(child, asked.number)[-1] == "Outcome"


def test_begin_is_said_before_the_upstream_is_asked(upstream: Upstream, child: Backends, gateway: LinkGateway) -> None:
    asked = task(gateway.url, "mock?latency=500ms", stream=True)
    child.send(asked)
    begin = gateway.wait_for_begin(asked.request_id)
    assert child.outcome(asked.number).end == "answered" and begin.at_s - asked.received_at_s < 0.3


def test_an_error_is_delivered_and_acknowledged(child: Backends, gateway: LinkGateway) -> None:
    asked = task(gateway.url, "err-400", stream=True)
    outcome = child.run(asked)
    assert outcome.end == "failed"
    assert gateway.frames(asked.request_id) == [{"request_id": asked.request_id, "end": True, "data": {"error": outcome.error}}]


def test_nothing_is_said_of_what_is_tried_again(child: Backends, gateway: LinkGateway) -> None:
    asked = task(gateway.url, "err-500", stream=True)
    assert child.run(asked).end == "retry" and gateway.frames(asked.request_id) == []


def test_a_hundred_streams_share_one_link(upstream: Upstream, gateway: LinkGateway) -> None:
    with Backends(settings(upstream.url), room=100) as child:
        asked = [task(gateway.url, "mock?tokens=20&gap=20ms&latency=1s", stream=True) for _ in range(100)]
        for one in asked:
            child.send(one)
        assert [child.outcome(one.number, 30).end for one in asked] == ["answered"] * 100
        assert upstream.stats()["peak_in_flight"] >= 80 and gateway.links == 1
        for one in asked:
            frames = gateway.frames(one.request_id)
            words = "".join(frame["data"]["choices"][0]["delta"].get("content") or "" for frame in frames[:-1])
            assert words.split() == [f"t{n}" for n in range(20)] and frames[-1]["end"] is True


def test_a_gateway_without_links_is_answered_as_ever(child: Backends, gateway: LinkGateway) -> None:
    gateway.refuses_with = 404
    with Requester() as requester:
        for stream, _ in itertools.product((True, False), range(2)):
            asked = task(requester, stream=stream)
            assert child.run(structs.replace(asked, link=gateway.url)).end == "answered"
            assert (requester.stream if stream else requester.posts)(asked.request_id)
    assert gateway.handshakes == 1  # and is not asked again for a while


@pytest.mark.parametrize("link", ["no address", "ws://[bad/res/link", "http://"])
def test_a_link_that_is_none(child: Backends, link: str) -> None:
    with Requester() as requester:
        asked = task(requester, stream=False)
        assert child.run(structs.replace(asked, link=link)).end == "answered" and requester.posts(asked.request_id)


# gone, busy


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_gone_ends_the_computing(upstream: Upstream, child: Backends, gateway: LinkGateway, stream: bool) -> None:
    asked = task(gateway.url, "never", stream=stream)
    gateway.replies[asked.request_id] = ["gone"]
    child.send(asked)
    begin = gateway.wait_for_begin(asked.request_id)
    assert ended_after_s(child, asked, begin.at_s) < CANCELLED_WITHIN_S
    upstream.wait_for(lambda stats: stats["in_flight"] == 0)
    assert gateway.frames(asked.request_id) == []


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_busy_ends_it_without_a_word(child: Backends, gateway: LinkGateway, stream: bool) -> None:
    asked = task(gateway.url, "mock?latency=500ms", stream=stream)
    gateway.replies[asked.request_id] = ["busy"]
    outcome = child.run(asked)
    assert (outcome.end, code(outcome)) == ("busy", "requester_busy")
    assert gateway.frames(asked.request_id) == [] and said(child, asked.number) == ["Outcome"]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_who_is_taken_over_is_not_gone(upstream: Upstream, child: Backends, gateway: LinkGateway, stream: bool) -> None:
    """Its message must outlive it: the attempt that took over may die."""
    asked = task(gateway.url, "never", stream=stream)
    child.send(asked)
    begin = gateway.wait_for_begin(asked.request_id)
    gateway.take_over(asked.request_id, begin.attempt)
    assert child.outcome(asked.number).end == "busy"
    upstream.wait_for(lambda stats: stats["in_flight"] == 0)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_an_end_that_nobody_took_is_gone(child: Backends, gateway: LinkGateway, stream: bool) -> None:
    gateway.receipt = "gone"
    outcome = child.run(task(gateway.url, stream=stream))
    assert (outcome.end, outcome.completion_tokens) == ("gone", 8)


# refusals


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_refusal_goes_over_a_link(child: Backends, gateway: LinkGateway, stream: bool) -> None:
    asked = refuse(gateway.url, ERROR, stream=stream)
    gateway.replies[asked.request_id] = ["busy", "busy", "busy", "go"]  # the link of who died ends meanwhile
    outcome = child.run(asked)
    assert (outcome.end, outcome.error, len(gateway.begun(asked.request_id))) == ("failed", ERROR, 4)
    assert gateway.frames(asked.request_id) == [{"request_id": asked.request_id, "end": True, "data": {"error": ERROR}}]


def test_a_refusal_does_not_insist_for_ever(child: Backends, gateway: LinkGateway) -> None:
    asked = refuse(gateway.url, ERROR, stream=True)
    gateway.replies[asked.request_id] = ["busy"]
    assert child.run(asked).end == "unknown" and 2 <= time.monotonic() - asked.received_at_s < 4


def test_a_refusal_of_what_is_gone(child: Backends, gateway: LinkGateway) -> None:
    asked = refuse(gateway.url, ERROR, stream=True)
    gateway.replies[asked.request_id] = ["gone"]
    assert child.run(asked).end == "gone" and gateway.frames(asked.request_id) == []


# links that break


@pytest.mark.parametrize("behaviour", ["mock?tokens=500&gap=20ms", "hang-midstream?tokens=8"])
def test_a_link_lost_in_mid_stream_ends_it(upstream: Upstream, child: Backends, gateway: LinkGateway, behaviour: str) -> None:
    asked = task(gateway.url, behaviour, stream=True)
    child.send(asked)
    child.until(lambda: len(gateway.frames(asked.request_id)) >= 3, 5, "frames")
    broken_s = time.monotonic()
    gateway.break_links()
    assert ended_after_s(child, asked, broken_s) < 0.5
    upstream.wait_for(lambda stats: stats["in_flight"] == 0)
    assert child.run(task(gateway.url, stream=True)).end == "answered" and gateway.links == 2


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_link_lost_before_the_first_output_is_made_anew(
    upstream: Upstream, child: Backends, gateway: LinkGateway, stream: bool
) -> None:
    asked = task(gateway.url, "mock?latency=500ms", stream=stream)
    child.send(asked)
    gateway.wait_for_begin(asked.request_id)
    gateway.break_links()
    assert child.outcome(asked.number).end == "answered"
    assert [begin.link for begin in gateway.begun(asked.request_id)] == [1, 2]
    assert upstream.stats()["received"] == 1 and len(gateway.frames(asked.request_id)) == (11 if stream else 1)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_gateway_that_restarts_gets_what_was_computed(
    upstream: Upstream, child: Backends, gateway: LinkGateway, stream: bool
) -> None:
    asked = task(gateway.url, "mock?latency=300ms", stream=stream)
    child.send(asked)
    gateway.wait_for_begin(asked.request_id)
    gateway.stop()
    child.until(lambda: said(child, asked.number) == ["Computed"], 5, "notice that the slot is free")
    gateway.start()
    assert child.outcome(asked.number).end == "answered" and upstream.stats()["received"] == 1
    assert said(child, asked.number) == ["Computed", *(["Begun"] if stream else []), "Outcome"]
    assert len(gateway.frames(asked.request_id)) == (11 if stream else 1)


def test_a_gateway_that_is_not_there_costs_each_request_little(child: Backends, gateway: LinkGateway) -> None:
    gateway.stop()
    asked = [task(gateway.url, stream=False, ttl_s=0.5) for _ in range(10)]
    for one in asked:
        child.send(one)
    assert {child.outcome(one.number).end for one in asked} == {"undeliverable"}


def test_a_receipt_lost_with_its_link_is_asked_for_again(upstream: Upstream, child: Backends, gateway: LinkGateway) -> None:
    gateway.receipt = ""
    asked = task(gateway.url, stream=False)
    child.send(asked)
    gateway.wait_for_frames(asked.request_id)
    gateway.receipt = "taken"
    gateway.replies[asked.request_id] = ["gone"]  # it has its answer
    gateway.break_links()
    assert child.outcome(asked.number).end == "gone" and upstream.stats()["received"] == 1


# cancels


def cancelled(child: Backends, gateway: LinkGateway, asked: Task) -> float:
    """How long after a cancel its outcome came."""
    return ended_after_s(child, asked, gateway.cancel(asked.request_id))


PHASES = {
    "headers": ("never", True, 0), "headers of a whole answer": ("never", False, 0), "first chunk": ("never-after-headers", True, 0),
    "quiet stream": ("hang-midstream?tokens=8", True, 3), "busy stream": ("mock?tokens=2000&gap=5ms", True, 3),
    "whole from a stream": ("hang-midstream", False, 0),
}  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
def test_a_cancel_ends_the_call(upstream: Upstream, child: Backends, gateway: LinkGateway, phase: str) -> None:
    behaviour, stream, frames = PHASES[phase]
    asked = task(gateway.url, behaviour, stream=stream)
    child.send(asked)
    upstream.wait_for(lambda stats: stats["in_flight"] == 1)
    gateway.wait_for_frames(asked.request_id, frames)
    assert cancelled(child, gateway, asked) < CANCELLED_WITHIN_S
    upstream.wait_for(lambda stats: stats["in_flight"] == 0 and stats["cancelled"] == 1, within_s=1)
    assert not any(frame["end"] for frame in gateway.frames(asked.request_id))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_cancel_ends_a_connecting_call(gateway: LinkGateway, scheme: str) -> None:
    """Where nobody accepts connections; and with TLS also where they are accepted, and nobody shakes hands."""
    deaf = socket.create_server(("127.0.0.1", 0), backlog=0)
    with deaf, Backends(settings(f"{scheme}://127.0.0.1:{deaf.getsockname()[1]}")) as child:
        for _ in range(3):  # the first ones still fit into the backlog
            asked = task(gateway.url, stream=True)
            child.send(asked)
            gateway.wait_for_begin(asked.request_id)
            time.sleep(0.1)
            assert cancelled(child, gateway, asked) < CANCELLED_WITHIN_S


def test_a_cancel_may_come_first(upstream: Upstream, child: Backends, gateway: LinkGateway) -> None:
    assert child.run(task(gateway.url, stream=True)).end == "answered"
    asked = task(gateway.url, stream=True)
    gateway.cancel(asked.request_id)
    time.sleep(0.1)
    gateway.replies[asked.request_id] = ["gone"]
    assert child.run(asked).end == "gone" and upstream.stats()["received"] == 1


def test_an_attempt_that_was_taken_over_may_come_back(child: Backends, gateway: LinkGateway) -> None:
    """Its link was told `cancel` when another node began it; that one failed too, and the next attempt is ours again."""
    asked = task(gateway.url, "err-500?times=1&id=takeover", stream=True)
    assert child.run(asked).end == "retry"
    gateway.cancel(asked.request_id)
    time.sleep(0.1)
    again = task(gateway.url, "err-500?times=1&id=takeover", stream=True, attempt=3)
    assert child.run(structs.replace(again, request_id=asked.request_id)).end == "answered"


def test_a_cancelled_call_harms_no_other(upstream: Upstream, child: Backends, gateway: LinkGateway) -> None:
    """Connections are shared one after the other: whoever has one next must not be cut off."""
    stays = task(gateway.url, "mock?tokens=100&gap=20ms", stream=True)
    child.send(stays)
    for _ in range(20):
        asked = task(gateway.url, "mock?tokens=3", stream=True)
        child.send(asked)
        gateway.wait_for_frames(asked.request_id)
        gateway.cancel(asked.request_id)
        assert child.outcome(asked.number).end in ("answered", "gone")
        assert child.run(task(gateway.url, stream=True)).end == "answered"
    assert child.outcome(stays.number).end == "answered"


# the endpoint's streams: a requester that left is known by the missing pong


@pytest.mark.parametrize("behaviour", ["mock?tokens=600&gap=50ms", "hang-midstream?tokens=8"])
def test_a_reader_that_stops_ends_the_call(upstream: Upstream, behaviour: str) -> None:
    with Requester() as requester, Backends(settings(upstream.url, READ_TIMEOUT_S="60")) as child:
        requester.stops_reading_after = 2
        asked = task(requester, behaviour, stream=True)
        outcome = child.run(asked, within_s=15)
        assert (outcome.end, code(outcome)) == ("gone", "requester_gone") and "no pong" in (outcome.error or {})["message"]
        assert time.monotonic() - asked.received_at_s < pool.GONE_AFTER_S + 4
        upstream.wait_for(lambda stats: stats["in_flight"] == 0)


def test_a_reader_that_lives_is_not_taken_for_gone(upstream: Upstream) -> None:
    with Requester() as requester, Backends(settings(upstream.url, READ_TIMEOUT_S="60")) as child:
        asked = task(requester, "mock?tokens=2&gap=9s", stream=True)
        assert child.run(asked, within_s=20).end == "answered"


# the end of the child


@pytest.mark.parametrize("way", ["link", "endpoint"])
def test_a_lease_that_runs_out_ends_begun_streams(upstream: Upstream, gateway: LinkGateway, way: str) -> None:
    with Requester() as requester, Backends(settings(upstream.url), lease_s=1.5) as child:
        to: Requester | str = gateway.url if way == "link" else requester
        streams = [task(to, behaviour, stream=True) for behaviour in ("hang-midstream?tokens=8", "mock?tokens=1000&gap=20ms")]
        waiting = [task(to, "never", stream=stream) for stream in (True, False)]
        for asked in streams + waiting:
            child.send(asked)
        child.until(lambda: sum(isinstance(m, Begun) for _, m, _ in child.said) == 2, 5, "begun streams")
        child.child.process.join(8)
        assert child.child.process.exitcode == ExitCode.SUPERVISOR_GONE
        last = [_last_frame(gateway if way == "link" else requester, asked) for asked in streams]
        errors = [frame["data"]["error"] for frame in last]
        assert [(error["type"], error["code"]) for error in errors] == [("server_error", "node_stopped")] * 2
        assert [(gateway if way == "link" else requester).frames(asked.request_id) for asked in waiting] == [[], []]
        upstream.wait_for(lambda stats: stats["in_flight"] == 0)


def _last_frame(to: LinkGateway | Requester, asked: Task) -> dict[str, Any]:
    """Of a stream, once it has ended."""

    def frames() -> list[dict[str, Any]]:
        return to.frames(asked.request_id) if isinstance(to, LinkGateway) else [seen.json for seen in to.frames(asked.request_id)]

    wait_until(lambda: frames()[-1]["end"], within_s=2, what="end frame")
    return frames()[-1]


def test_a_stuck_requester_does_not_keep_the_child(upstream: Upstream) -> None:
    with Requester() as requester, Backends(settings(upstream.url), lease_s=1.5) as child:
        requester.stops_reading_after = 1
        child.send(task(requester, "hang-midstream?tokens=8", stream=True))
        began_s = time.monotonic()
        child.child.process.join(8)
        assert child.child.process.exitcode == ExitCode.SUPERVISOR_GONE and time.monotonic() - began_s < 1.5 + 3


# progress


def test_what_works_is_not_overdue(upstream: Upstream, child: Backends, gateway: LinkGateway) -> None:
    for behaviour in ("never", "hang-midstream?tokens=8", "mock?tokens=1000&gap=20ms"):
        child.send(task(gateway.url, behaviour, stream=True))
    upstream.wait_for(lambda stats: stats["in_flight"] == 3)
    child.crew.send(child.child, Lease())
    child.crew.flush()
    child.until(lambda: any(isinstance(m, Alive) for _, m, _ in child.said), 5, "sign of life")
    assert {tuple(m.overdue) for _, m, _ in child.said if isinstance(m, Alive)} == {()}


def test_an_upstream_that_drips_costs_its_own_request_only(gateway: LinkGateway) -> None:
    """Each byte is progress of a kind, and begins no time-out anew. It is over before the child would count as hanging."""
    with _dripping() as port, Backends(settings(f"http://127.0.0.1:{port}", FIRST_TOKEN_TIMEOUT_S="500ms")) as child:
        outcome = child.run(task(gateway.url, stream=True), within_s=20)
        assert outcome.end == "retry" and child.dead == []
        assert not any(m.overdue for _, m, _ in child.said if isinstance(m, Alive))


@contextlib.contextmanager
def _dripping() -> Iterator[int]:
    """A server whose headers never end; its port."""

    def drip() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
                while not ended.wait(0.1):
                    connection.sendall(b"x")

    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, daemon=True).start()
        yield listener.getsockname()[1]
        ended.set()


def test_a_stopped_child_loses_nothing(child: Backends, gateway: LinkGateway) -> None:
    """Stopped for a while and going on: its link stands, and the stream goes on."""
    asked = task(gateway.url, "mock?tokens=20&gap=50ms", stream=True)
    child.send(asked)
    gateway.wait_for_frames(asked.request_id, 3)
    os.kill(child.child.process.pid, signal.SIGSTOP)
    time.sleep(1)
    os.kill(child.child.process.pid, signal.SIGCONT)
    assert child.outcome(asked.number).end == "answered" and gateway.links == 1


def test_a_free_port_is_no_gateway(child: Backends) -> None:
    asked = task(f"ws://127.0.0.1:{free_port()}/res/link", stream=True, ttl_s=0.5)
    outcome = child.run(asked)
    assert outcome.end == "undeliverable" and outcome.answer is not None
    assert any(isinstance(m, Computed) for m, _ in child.messages(asked.number))


# the parts that need another clock


@on_loop
async def test_a_gateway_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its host is gone without a word: no pong to a ping of ours either."""
    monkeypatch.setattr(links, "PING_EACH_S", 0.1)
    monkeypatch.setattr(links, "SILENT_AFTER_S", 0.5)
    with Requester() as silent:
        alive = await Links(Dialer(), print).to(silent.websocket_url)
        await asyncio.sleep(1)
        assert alive.is_open
        silent.pongs = False
        await until(lambda: not alive.is_open, within_s=3, what="end of the link")


def test_only_so_many_early_cancels_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aboard, "MAX_EARLY", 2)
    found = Aboard()
    for name in ("a", "b", "c"):
        found.cancel(name)
    assert [found.was_cancelled(name) for name in ("a", "b", "c", "c")] == [False, True, True, False]


class Tight:
    """A socket that is full again behind each frame until it was waited for."""

    is_open, is_full = True, False

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.heard_s = time.monotonic()

    def put(self, text: bytes) -> None:
        self.sent.append(text)

    def flush(self) -> None:
        return

    async def until_writable(self) -> None:
        await asyncio.sleep(0.001)
        self.is_full = False


@on_loop
async def test_a_link_that_is_full_again_and_again_loses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MAX_TOGETHER_BYTES", 1)  # each frame goes by itself
    tight = Tight()
    link = Link(cast(WebSocket, tight), print, Pace())
    real_put = link.put

    def put(frame: bytes) -> bool:
        found = real_put(frame)
        tight.is_full = True
        return found

    monkeypatch.setattr(link, "put", put)
    await asyncio.gather(*(link.send(b"%d" % number) for number in range(50)))
    link._flush()
    assert sorted(map(int, b"\n".join(tight.sent).split(b"\n"))) == list(range(50))


@on_loop
async def test_a_run_that_ends_while_it_begins_leaves_nothing_on_its_link() -> None:
    tight, pace = Tight(), Pace()
    tight.is_full = True
    link, run = Link(cast(WebSocket, tight), print, pace), Run(1, "r")
    beginning = asyncio.create_task(run.endable(link.begin(run, 1, insists=False)))
    await asyncio.sleep(0)
    run.end(RequesterGone("it left"))
    with pytest.raises(RequesterGone):
        await beginning
    assert pace.in_flight == 0 and not link._talks
