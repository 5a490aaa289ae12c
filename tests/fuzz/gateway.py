"""A real gateway between clients that send anything and one that asks properly, and is answered all the while."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import psutil
import urllib3

from tests.fuzz.clients import Sent, case
from tests.real.node import NodeProcess

AT_ONCE = 32
READ_S = 0.2  # whether something comes
ANSWERED_WITHIN_S = 20.0
BUG_WORDS = ("Traceback", "hit a bug", "Exception in", "ERROR")
# What the gateway may say: never that it failed itself.
_FINE = {100, 101, 200, 400, 401, 403, 404, 405, 408, 413, 426, 431, 503}


@dataclass
class Result:
    """wrong: (number of the case, what); statuses: what was said to the fuzzed; waits_s: of the one that asks properly."""

    wrong: list[tuple[int, str]] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    waits_s: list[float] = field(default_factory=list)
    sent: int = 0
    took_s: float = 0.0

    def __str__(self) -> str:
        waits = sorted(self.waits_s) or [0.0]
        middle, longest = (waits[at] * 1000 for at in (len(waits) // 2, -1))
        asked = f"{len(self.waits_s):,} asked properly meanwhile: p50 {middle:.0f} ms, longest {longest:.0f} ms"
        return f"{self.sent:,} sent in {self.took_s:.0f} s, {len(self.wrong)} wrong; {asked}; {dict(sorted(self.statuses.items()))}"


class FuzzedGateway:
    """`with NodeProcess(…, gateway=True) as node: FuzzedGateway(node, seed).send(range(1000))`; the node is a demo all in one."""

    def __init__(self, node: NodeProcess, seed: int, at_once: int = AT_ONCE) -> None:
        self._node, self._seed, self._at_once = node, seed, at_once
        self.result = Result()
        self._process = listening(node, node.port)

    def send(self, numbers: Iterable[int]) -> Result:
        started_s = time.monotonic()
        with self._asking():
            asyncio.run(self._send_all(iter(numbers)))
        self.result.took_s += time.monotonic() - started_s
        self._look_behind()
        return self.result

    def hold(self, count: int, seconds: float) -> Result:
        """So many connections at once, each with a request that comes by a byte now and then."""
        with self._asking():
            asyncio.run(self._hold_all(count, seconds))
        self._look_behind()
        return self.result

    async def _send_all(self, left: Iterator[int]) -> None:
        async def one_after_the_other() -> None:
            for number in left:
                await self._send_one(number, case(self._seed, number))

        await asyncio.gather(*(one_after_the_other() for _ in range(self._at_once)))

    async def _send_one(self, number: int, sent: Sent) -> None:
        said = b""
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", self._node.port), ANSWERED_WITHIN_S)
        except (OSError, TimeoutError) as error:
            self.result.wrong.append((number, f"no connection: {error!r}"))
            return
        with contextlib.suppress(OSError, TimeoutError):
            for piece in sent.pieces:
                writer.write(piece)
                await asyncio.wait_for(writer.drain(), ANSWERED_WITHIN_S)
                await asyncio.sleep(0)
            if sent.then == "read":
                said = await asyncio.wait_for(reader.read(65536), READ_S)
        _end(writer, reset=sent.then == "reset")
        self.result.sent += 1
        self._judge(number, said)

    def _judge(self, number: int, said: bytes) -> None:
        if not said:
            return
        first = said.split(b"\r\n", 1)[0].split()
        status = int(first[1]) if len(first) > 1 and first[0].startswith(b"HTTP/1.") and first[1].isdigit() else 0
        self.result.statuses[status] += 1
        if status not in _FINE:
            self.result.wrong.append((number, f"it said {said[:200]!r}"))

    async def _hold_all(self, count: int, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        starts = [b"", b"G", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n",
                  b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"]  # fmt: skip

        async def drip(number: int) -> None:
            with contextlib.suppress(OSError, TimeoutError):
                _, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", self._node.port), ANSWERED_WITHIN_S)
                writer.write(starts[number % len(starts)])
                while time.monotonic() < until_s and not writer.is_closing():
                    writer.write(b"x")
                    await asyncio.sleep(1.0)
                _end(writer, reset=True)
            self.result.sent += 1

        await asyncio.gather(*(drip(number) for number in range(count)))

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Somebody asks properly meanwhile, one request after the other, and twice at least."""
        over = threading.Event()
        thread = threading.Thread(target=self._ask_until, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(4 * ANSWERED_WITHIN_S)

    def _ask_until(self, over: threading.Event) -> None:
        http = urllib3.PoolManager(retries=False, timeout=ANSWERED_WITHIN_S)
        body = {"model": self._node.model, "messages": [{"role": "user", "content": "hi"}]}
        times = 0
        while not over.wait(0.02) or times < 2:
            times += 1
            began_s = time.monotonic()
            try:
                answer = http.request("POST", f"{self._node.base_url}/chat/completions", json=body)
                if answer.status != 200 or not json.loads(answer.data)["choices"]:
                    self.result.wrong.append((-1, f"who asked properly got {answer.status}: {answer.data[:300]!r}"))
            except urllib3.exceptions.HTTPError as error:
                self.result.wrong.append((-1, f"who asked properly got no answer: {error!r}"))
            self.result.waits_s.append(time.monotonic() - began_s)

    def _look_behind(self) -> None:
        if not self._process.is_running():
            self.result.wrong.append((-1, "the gateway ended"))
        found = [line for line in self._node.log().splitlines() if any(word in line for word in BUG_WORDS)]
        if found:
            self.result.wrong.append((-1, "in the log:\n" + "\n".join(found[:20])))

    @property
    def rss_bytes(self) -> int:
        rss: int = self._process.memory_info().rss
        return rss

    @property
    def connections(self) -> int:
        return sum(1 for found in self._process.net_connections("tcp") if found.laddr.port == self._node.port and found.raddr)


def listening(node: NodeProcess, port: int) -> psutil.Process:
    """The process of the node that listens there."""
    for process in node.tree():
        if any(found.status == psutil.CONN_LISTEN and found.laddr.port == port for found in process.net_connections("tcp")):
            return process
    raise AssertionError(f"nobody listens on {port}")


def _end(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    if reset:
        connection: socket.socket = writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
