"""How a real child delivers: at once, early, late, to nobody, over sockets that are used again; and refusals for others."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import msgspec
import pytest

from errors import error_object
from ipc.messages import Begun, Computed, Outcome
from tests.real.crew import Backends, refuse, settings, task
from tests.real.processes import wait_until
from tests.real.requester import Requester
from tests.real.upstream import Upstream

ERROR = error_object("The request was given up.", "server_error", "given_up")


@pytest.fixture
def requester() -> Iterator[Requester]:
    with Requester() as requester:
        yield requester


@pytest.fixture(scope="module")
def child(_shared_upstream: Upstream) -> Iterator[Backends]:
    with Backends(settings(_shared_upstream.url)) as child:
        yield child


def said(child: Backends, number: int) -> list[str]:
    return [type(message).__name__ for message, _ in child.messages(number)]


# streams


def test_chunks_go_on_at_once(child: Backends, requester: Requester) -> None:
    asked = task(requester, "mock?tokens=4&gap=300ms", stream=True)
    assert child.run(asked).end == "answered"
    at_s = [seen.at_s for seen in requester.frames(asked.request_id)[1:5]]  # behind the role's: the four words
    gaps_s = [later - earlier for earlier, later in itertools.pairwise(at_s)]
    assert len(gaps_s) == 3 and min(gaps_s) > 0.15  # held back, they would arrive together


def test_the_first_frame_is_neither_early_nor_unannounced(child: Backends, requester: Requester) -> None:
    """The existing service may register a request up to 77 ms after the node has received it."""
    asked = task(requester, stream=True)
    assert child.run(asked).end == "answered"
    first_s = requester.frames(asked.request_id)[0].at_s
    (begun_s,) = (at_s for message, at_s in child.messages(asked.number) if isinstance(message, Begun))
    assert 0.1 <= first_s - asked.received_at_s < 2
    assert said(child, asked.number) == ["Begun", "Outcome"] and begun_s < first_s + 0.5


def test_begun_is_said_before_anything_is_sent(child: Backends, requester: Requester) -> None:
    """Also where nobody reads it: the notice cannot wait for the requester."""
    requester.stops_reading_after = 0
    asked = task(requester, "mock?tokens=2&gap=500ms", stream=True)
    child.send(asked)
    child.until(lambda: said(child, asked.number) == ["Begun"], 5, "notice")
    assert child.outcome(asked.number).end == "gone" and requester.frames(asked.request_id) == []


def test_a_request_that_waited_is_not_held_back_again(child: Backends, requester: Requester) -> None:
    now_s = time.monotonic()
    asked = msgspec.structs.replace(task(requester, stream=True), received_at_s=now_s - 1)
    assert child.run(asked).end == "answered"
    assert requester.frames(asked.request_id)[0].at_s - now_s < 1


def test_sockets_are_used_again_one_stream_at_a_time(child: Backends, requester: Requester) -> None:
    for _ in range(3):
        assert child.run(task(requester, stream=True)).end == "answered"
    assert (requester.sockets, requester.connections) == (1, 1)
    several = [child.send(task(requester, "mock?tokens=3&gap=100ms", stream=True)) for _ in range(3)]
    assert [child.outcome(number).end for number in several] == ["answered"] * 3
    assert requester.sockets == 3
    by_socket = {number: {seen.connection for seen in requester.frames(f"request-{number}")} for number in several}
    assert sorted(connection for used in by_socket.values() for connection in used) == [1, 2, 3]


def test_a_socket_without_a_pong_is_thrown_away(child: Backends, requester: Requester) -> None:
    requester.pongs = False
    asked = task(requester, stream=True)
    outcome = child.run(asked)
    assert (outcome.end, requester.stream(asked.request_id)[-1]["end"]) == ("gone", True)
    wait_until(lambda: requester.open_connections == 0, within_s=5, what="closed socket")
    requester.pongs = True
    assert child.run(task(requester, stream=True)).end == "answered"
    assert requester.sockets == 2


def test_a_reader_that_stops_for_good_holds_nobody(child: Backends, requester: Requester) -> None:
    """As the existing service's for a requester that left: there is no pong (test_answers.py has the full buffers)."""
    requester.stops_reading_after = 1
    began_s = time.monotonic()
    stuck = [child.send(task(requester, behaviour, stream=True)) for behaviour in ("mock?tokens=60", "long-line")]
    assert [child.outcome(number, 15).end for number in stuck] == ["gone"] * 2
    assert time.monotonic() - began_s < 10
    requester.stops_reading_after = None
    assert child.run(task(requester, stream=True)).end == "answered" and requester.sockets == 3


def test_a_socket_that_closes_ends_the_stream_and_the_computing(upstream: Upstream, child: Backends, requester: Requester) -> None:
    requester.closes_after = 3
    outcome = child.run(task(requester, "mock?tokens=200&gap=50ms", stream=True))
    assert (outcome.end, outcome.tokens_source) == ("gone", "estimated")
    assert outcome.error is not None and outcome.error["code"] == "requester_gone"
    upstream.wait_for(lambda stats: stats["cancelled"] == 1 and stats["in_flight"] == 0)
    requester.closes_after = None
    assert child.run(task(requester, stream=True)).end == "answered"


def test_pings_of_the_service_are_answered(child: Backends, requester: Requester) -> None:
    requester.pings = True
    assert child.run(task(requester, stream=True)).end == "answered"
    wait_until(lambda: requester.pongs_received > 5, within_s=5, what="pongs")


# whole answers


def test_an_early_answer_is_posted_again(child: Backends, requester: Requester) -> None:
    asked = task(requester, stream=False)
    requester.known_from_s[asked.request_id] = asked.received_at_s + 0.5
    assert child.run(asked).end == "answered"
    assert len(requester.posts(asked.request_id)) == 1 and requester.post_tries > 1


@pytest.mark.parametrize("young", [True, False], ids=["young", "old"])
def test_an_unknown_request_ends(child: Backends, requester: Requester, young: bool) -> None:
    """One that was received a while ago is not early any more: it was answered, or its requester has left. The attempt says
    nothing: the first may have died at once."""
    asked = task(requester, stream=False, attempt=2)
    if not young:
        asked = msgspec.structs.replace(asked, received_at_s=asked.received_at_s - 2)
    requester.unknown.add(asked.request_id)
    began_s = time.monotonic()
    outcome = child.run(asked)
    waited_s = time.monotonic() - began_s
    assert outcome.end == "unknown" and outcome.completion_tokens == 8
    assert (0.5 < waited_s < 3 and requester.post_tries > 3) if young else requester.post_tries == 1


def test_posts_share_connections(child: Backends, requester: Requester) -> None:
    for _ in range(3):
        assert child.run(task(requester, stream=False)).end == "answered"
    assert requester.connections == 1


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_an_endpoint_that_comes_back(upstream: Upstream, child: Backends, requester: Requester, stream: bool) -> None:
    requester.stop()
    asked = task(requester, stream=stream)
    child.send(asked)
    child.until(lambda: "Computed" in said(child, asked.number), 5, "notice that the slot is free")
    assert said(child, asked.number) == ["Computed"]
    requester.start()
    outcome = child.outcome(asked.number)
    assert (outcome.end, outcome.completion_tokens) == ("answered", 8)
    assert said(child, asked.number) == ["Computed", *(["Begun"] if stream else []), "Outcome"]
    if stream:
        assert len(requester.stream(asked.request_id)) == 11
    else:
        assert len(requester.posts(asked.request_id)) == 1
    assert upstream.stats()["received"] == 1  # what was computed is not computed again


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_the_last_slot_is_held_until_the_answer_is_delivered(child: Backends, requester: Requester, stream: bool) -> None:
    """As the more deliveries run at once, the more are in doubt when a child dies; a link's attempts are fenced."""
    asked = msgspec.structs.replace(task(requester, stream=stream), is_last=True)
    assert child.run(asked).end == "answered"
    assert said(child, asked.number) == [*(["Begun"] if stream else []), "Outcome"]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_an_endpoint_that_stays_away(child: Backends, requester: Requester, stream: bool) -> None:
    requester.stop()
    asked = task(requester, stream=stream, ttl_s=1.2)
    outcome = child.run(asked)
    assert 1.0 < time.monotonic() - asked.received_at_s < 5
    assert outcome.end == "undeliverable" and outcome.completion_tokens == 8
    assert outcome.answer is not None and b"t0" in outcome.answer and outcome.answer.count(b'"end":true') == int(stream)
    assert outcome.error is not None and outcome.error["code"] == "undeliverable"


def test_an_endpoint_that_hangs_or_fails(_shared_upstream: Upstream, child: Backends, requester: Requester) -> None:
    requester.post_status = 500
    asked = task(requester, stream=False)
    child.send(asked)
    child.until(lambda: said(child, asked.number) == ["Computed"], 5, "notice")
    requester.post_status = 200
    assert child.outcome(asked.number).end == "answered"


def test_an_endpoint_that_refuses_the_answer_is_not_asked_again(child: Backends, requester: Requester) -> None:
    requester.post_status = 413
    asked = task(requester, stream=False)
    outcome = child.run(asked)
    assert (outcome.end, outcome.completion_tokens, requester.post_tries) == ("undeliverable", 8, 1)
    assert said(child, asked.number) == ["Outcome"] and "413" in (outcome.error or {})["message"]


@pytest.mark.parametrize("endpoint", ["http://[bad/res", "no address", "http://127.0.0.1:1/res"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_an_endpoint_that_is_none(child: Backends, requester: Requester, endpoint: str, stream: bool) -> None:
    asked = msgspec.structs.replace(task(requester, stream=stream, ttl_s=0.3), endpoint=endpoint)
    outcome = child.run(asked)
    assert (outcome.end, outcome.completion_tokens) == ("undeliverable", 8)


def test_a_stream_whose_endpoint_reads_http(child: Backends, requester: Requester) -> None:
    address = requester.websocket_url.replace("ws://", "http://")
    asked = msgspec.structs.replace(task(requester, stream=True), endpoint=address)
    assert child.run(asked).end == "answered" and len(requester.stream(asked.request_id)) == 11


# refusals


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_refusal_is_delivered(child: Backends, requester: Requester, stream: bool) -> None:
    asked = refuse(requester, ERROR, stream=stream)
    child.send(asked)
    outcome = child.outcome(asked.number)
    assert (outcome.end, outcome.error) == ("failed", ERROR)
    found = requester.frames(asked.request_id) if stream else requester.posts(asked.request_id)
    expected = {"request_id": asked.request_id, "data": {"error": ERROR}} | ({"end": True} if stream else {})
    assert [seen.json for seen in found] == [expected]


def test_a_refusal_waits_for_no_slot(_shared_upstream: Upstream, requester: Requester) -> None:
    with Backends(settings(_shared_upstream.url), room=1) as busy:
        long = busy.send(task(requester, "mock?latency=1s", stream=False))
        assert busy.run(refuse(requester, ERROR, stream=False)).end == "failed"
        assert said(busy, long) == []
        assert busy.outcome(long).end == "answered"


def test_the_slot_is_free_while_a_delivery_is_tried(_shared_upstream: Upstream, requester: Requester) -> None:
    with Requester() as away, Backends(settings(_shared_upstream.url), room=1) as busy:
        away.stop()
        late = busy.send(task(away, stream=False))
        assert busy.run(task(requester, stream=False)).end == "answered"
        assert [type(m) for m, _ in busy.messages(late)] == [Computed]
        assert not any(isinstance(m, Outcome) for m, _ in busy.messages(late))
