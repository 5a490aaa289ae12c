"""A child's life and death: its lease, its channel, a broken frame, a stop; and upstreams that cannot be reached."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import selectors
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

import backends.child
from errors import ExitCode
from ipc.channel import PipeEnd
from ipc.messages import Ready, Stop, Unusable
from supervision.children import Crew, Dead, Role
from tests.real.crew import Backends, settings, task
from tests.real.processes import free_port, wait_until
from tests.real.requester import Requester
from tests.real.upstream import Upstream


@pytest.fixture(scope="module")
def requester() -> Iterator[Requester]:
    with Requester() as requester:
        yield requester


def exit_code(process: Any, within_s: float = 10.0) -> int:
    process.join(within_s)
    assert process.exitcode is not None, "the child goes on"
    code: int = process.exitcode
    return code


# the supervisor is gone


def test_a_closed_channel_ends_the_child(upstream: Upstream, requester: Requester) -> None:
    """Also in the middle of a request."""
    with Backends(settings(upstream.url)) as backend:
        backend.send(task(requester, "never", stream=True))
        upstream.wait_for(lambda stats: stats["in_flight"] == 1)
        process, channel = backend.child.process, backend.child.channel
        backend.selector.unregister(channel.read_fd)
        channel.close()
        assert exit_code(process) == ExitCode.SUPERVISOR_GONE
        upstream.wait_for(lambda stats: stats["in_flight"] == 0)


def test_a_lease_runs_out(upstream: Upstream) -> None:
    with Backends(settings(upstream.url), lease_s=0.6) as backend:
        began_s = time.monotonic()
        assert exit_code(backend.child.process) == ExitCode.SUPERVISOR_GONE
        assert time.monotonic() - began_s < 5


def test_a_renewed_lease_does_not(upstream: Upstream, requester: Requester) -> None:
    with Backends(settings(upstream.url), lease_s=2.6) as backend:  # the crew renews each 2 s
        give_up_at_s = time.monotonic() + 2.8
        backend.until(lambda: time.monotonic() > give_up_at_s, 10, "end of the wait")
        assert backend.dead == [] and backend.run(task(requester, stream=False)).end == "answered"


def test_a_model_that_still_loads_ends_with_its_child() -> None:
    """Its server never gets ready; nothing of it may be left."""
    mark = f"loading-{os.getpid()}-{time.monotonic_ns()}"
    command = shlex.join([sys.executable, "-c", "import time; time.sleep(600)", "{port}", mark])
    with Backends(settings(NODE_TYPE="local", MODEL_COMMAND=command), wait=False) as backend:
        wait_until(lambda: running(mark), within_s=10, what="model server")
        process, channel = backend.child.process, backend.child.channel
        backend.selector.unregister(channel.read_fd)
        channel.close()
        assert exit_code(process, 15) == ExitCode.SUPERVISOR_GONE
    wait_until(lambda: not running(mark), within_s=10, what="end of the model server")


def running(mark: str) -> list[int]:
    found = psutil.process_iter(["cmdline"])
    return [p.pid for p in found if mark in (p.info["cmdline"] or []) and p.status() != psutil.STATUS_ZOMBIE]


def test_a_stop_ends_it_well(upstream: Upstream) -> None:
    with Backends(settings(upstream.url)) as backend:
        backend.crew.send(backend.child, Stop())
        backend.crew.flush()
        assert exit_code(backend.child.process) == ExitCode.OK


def test_signals_are_left_to_the_supervisor(upstream: Upstream, requester: Requester) -> None:
    with Backends(settings(upstream.url)) as backend:
        asked = backend.send(task(requester, "mock?latency=500ms", stream=False))
        upstream.wait_for(lambda stats: stats["in_flight"] == 1)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(backend.child.process.pid, number)
        assert backend.outcome(asked).end == "answered"


# a child's trouble is its own


def _sends_frame(reading: PipeEnd, writing: PipeEnd, frame: bytes, kill: bool) -> None:
    os.write(writing.fileno(), frame)
    if kill:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


UNKNOWN_TAG = b"\x00\x00\x00\x0c\x81\xa4type\xa5bogus"


@pytest.mark.parametrize(("frame", "kill", "cause"), [
    (b"\xff\xff\xff\xff", False, "a frame announces 4,294,967,295 bytes"),
    (UNKNOWN_TAG, False, "a frame holds no known message"),
    (b"\x00\x00\x00\x03abc", False, "a frame holds no known message"),
    (b"\x00\x00\x10\x00only a part", True, "signal SIGKILL"),
])  # fmt: skip
def test_a_broken_frame_is_one_childs_alone(upstream: Upstream, requester: Requester, frame: bytes, kill: bool, cause: str) -> None:
    with Backends(settings(upstream.url), count=2) as backend:
        good, bad = backend.crew.children()
        running = backend.send(task(requester, "mock?latency=300ms", stream=True), good)
        selector = selectors.DefaultSelector()
        odd = Crew([Role("odd", functools.partial(_sends_frame, frame=frame, kill=kill), (), 1)], selector, random.Random(1))
        try:
            odd.start_missing()
            dead: list[Dead] = []
            give_up_at_s = time.monotonic() + 10
            while not dead and time.monotonic() < give_up_at_s:
                selector.select(0.02)
                odd.collect()
                dead = odd.bury()
                backend.turn(0)
        finally:
            odd.kill_all()
        assert cause in dead[0].cause and dead[0].unread == []
        assert backend.outcome(running).end == "answered" and bad.process.exitcode is None


def test_what_a_killed_child_had_said_is_read(upstream: Upstream, requester: Requester) -> None:
    with Backends(settings(upstream.url)) as backend:
        asked, process = task(requester, stream=False), backend.child.process
        backend.send(asked)
        wait_until(lambda: requester.posts(asked.request_id), within_s=5, what="answer")  # and nobody reads the channel
        process.join(0.3)
        process.kill()
        process.join(5)
        backend.until(lambda: backend.dead, 5, "burial")
        assert backend.outcome(asked.number).end == "answered"
        assert "SIGKILL" in backend.dead[0].cause


def test_a_stopped_child_blocks_nobody(upstream: Upstream, requester: Requester) -> None:
    with Backends(settings(upstream.url), count=2) as backend:
        stopped, other = backend.crew.children()
        os.kill(stopped.process.pid, signal.SIGSTOP)
        began_s = time.monotonic()
        for _ in range(8):
            backend.send(task(requester, stream=False, padding="x" * 1_000_000), stopped)
        assert time.monotonic() - began_s < 2 and stopped.channel.has_unsent
        assert backend.outcome(backend.send(task(requester, stream=True), other)).end == "answered"
        os.kill(stopped.process.pid, signal.SIGCONT)
        backend.until(lambda: not stopped.channel.has_unsent, 10, "end of what was unsent")


def posts_after_a_stop(upstream: Upstream, requester: Requester, lease_s: float, meanwhile: Callable[[Backends], None]) -> int:
    """How many answers a child posts that came to it while it was stopped."""
    already = requester.post_tries
    with Backends(settings(upstream.url), lease_s=lease_s) as backend:
        process = psutil.Process(backend.child.process.pid)
        for _ in range(12):
            backend.send(task(requester, "mock?latency=5s", stream=False))
        upstream.wait_for(lambda stats: stats["in_flight"] >= 12)
        process.suspend()
        assert requester.post_tries == already
        meanwhile(backend)
        upstream.wait_for(lambda stats: stats["in_flight"] == 0, 30)
        process.resume()
        process.wait(10)
    return requester.post_tries - already


def test_a_child_that_was_stopped_past_its_lease_answers_nobody(upstream: Upstream, requester: Requester) -> None:
    """Others have its requests by then."""
    assert posts_after_a_stop(upstream, requester, 6.0, lambda _: time.sleep(8.0)) == 0


def test_a_child_that_was_stopped_as_its_supervisor_died_answers_nobody(upstream: Upstream, requester: Requester) -> None:
    """Its lease is not over, and others have its requests all the same."""
    assert posts_after_a_stop(upstream, requester, 60.0, lambda backend: backend.child.channel.close()) == 0


# upstreams that cannot be reached


@pytest.fixture
def plain_port() -> Iterator[int]:
    """Where a server answers without TLS."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.recv(4096)

        threading.Thread(target=answer, daemon=True).start()
        yield listener.getsockname()[1]


@pytest.mark.parametrize(("url", "end", "code"), [
    ("http://127.0.0.1:{free}", "retry", "upstream_refused"),
    ("http://no-such-host.invalid", "throttle", "upstream_unresolved"),
    ("https://127.0.0.1:{plain}", "throttle", "upstream_tls"),
])  # fmt: skip
def test_an_upstream_that_cannot_be_reached(requester: Requester, plain_port: int, url: str, end: str, code: str) -> None:
    with Backends(settings(url.format(free=free_port(), plain=plain_port))) as backend:
        outcome = backend.run(task(requester, stream=True))
        assert outcome.error is not None and (outcome.end, outcome.error["code"]) == (end, code)


def test_a_bundle_without_certificates_is_said(upstream: Upstream, tmp_path: Any) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("nothing")
    with Backends(settings("https://127.0.0.1:1", CA_BUNDLE=str(bundle)), wait=False) as backend:
        backend.until(lambda: backend.dead, 10, "end of the child")
        (words,) = [message for _, message, _ in backend.said]
        assert isinstance(words, Unusable) and words.permanent and "CA_BUNDLE" in words.message
        assert backend.dead[0].child.last_words == words


def test_an_upstream_that_crashes_and_comes_back(requester: Requester) -> None:
    with Upstream() as own, Backends(settings(own.url)) as backend:
        assert backend.run(task(requester, stream=False)).end == "answered"
        outcome = backend.run(task(requester, "exit", stream=False))
        assert outcome.error is not None and (outcome.end, outcome.error["code"]) == ("retry", "upstream_reset")
        own.stop()
        own.start()
        assert backend.run(task(requester, stream=False)).end == "answered"


def test_connections_to_the_upstream_are_kept(upstream: Upstream, requester: Requester) -> None:
    with Backends(settings(upstream.url)) as backend:
        before = upstream.stats()["connections"]
        for stream in (True, False, True, False):
            assert backend.run(task(requester, stream=stream)).end == "answered"
        after = backend.run(task(requester, "err-500", stream=False))
        assert after.end == "retry" and backend.run(task(requester, stream=True)).end == "answered"
        own_requests = 2  # each look at the statistics is a connection of its own
        assert upstream.stats()["connections"] - before <= 1 + own_requests


def test_a_request_without_time_left_is_not_asked_for(upstream: Upstream, requester: Requester) -> None:
    with Backends(settings(upstream.url)) as backend:
        outcome = backend.run(task(requester, stream=False, ttl_s=-1))
        assert outcome.error is not None and (outcome.end, outcome.error["code"]) == ("retry", "upstream_timeout")
        assert upstream.stats()["received"] == 0


def test_a_deadline_ends_the_wait_for_a_first_output_only(upstream: Upstream, requester: Requester) -> None:
    with Backends(settings(upstream.url)) as backend:
        waiting = backend.send(task(requester, "never", stream=True, ttl_s=0.6))
        running = backend.send(task(requester, "mock?tokens=5&gap=300ms", stream=True, ttl_s=0.6))
        assert (backend.outcome(waiting).end, backend.outcome(running).end) == ("retry", "answered")


def test_a_demo_answers_both_ways(requester: Requester) -> None:
    with Backends(settings(NODE_TYPE="demo")) as backend:
        whole, streamed = task(requester, stream=False), task(requester, stream=True, stream_options={"include_usage": True})
        assert backend.run(whole).end == backend.run(streamed).end == "answered"
        said = requester.posts(whole.request_id)[0].json["data"]["choices"][0]["message"]["content"]
        *frames, usage, end = requester.stream(streamed.request_id)
        found = "".join(frame["data"]["choices"][0]["delta"].get("content", "") for frame in frames)
        assert said == found and "demo" in said
        assert usage["data"]["usage"]["completion_tokens"] == len(said.split()) and end == {"request_id": streamed.request_id, "end": True}


def test_a_child_is_ready_fast(upstream: Upstream) -> None:
    with Backends(settings(upstream.url)) as backend:
        ready_s = next(at_s for _, message, at_s in backend.said if isinstance(message, Ready)) - backend.child.born_s
        assert ready_s < 5  # measured: a third of a second
        assert backends.child.LEASE_S <= 10
