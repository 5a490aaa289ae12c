"""`python -m tests.real.upstream --port 0`: serves until SIGTERM; its first line is its address."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal

from tests.real.upstream.bucket import Bucket, Limits
from tests.real.upstream.server import Server


async def _serve(server: Server, port: int) -> None:
    ended = asyncio.Event()
    for sent in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sent, ended.set)
    listening = await server.serve("127.0.0.1", port)
    print(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", flush=True)
    await ended.wait()
    listening.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default="", help="what `Authorization: Bearer` must hold")
    parser.add_argument("--everybody", default="", help="a behaviour for all requests, whatever they ask for")
    parser.add_argument("--slots", type=int, default=4, help="total_slots of /props")
    parser.add_argument("--loading-s", type=float, default=0.0, help="answer 503 'Loading model' for so long")
    parser.add_argument("--tally", default="", help="a file to which the tokens of each completion are appended")
    parser.add_argument("--rpm", type=int, default=0, help="a limit of requests a minute, in a bucket of --burst")
    parser.add_argument("--burst", type=int, default=10, help="requests that the bucket holds")
    parser.add_argument("--tpm", type=int, default=0, help="a limit of tokens a minute, in a bucket of --token-burst")
    parser.add_argument("--token-burst", type=int, default=0, help="tokens that the bucket holds; 0: a minute's")
    parser.add_argument("--untold", type=int, default=0, help="1: nothing but the refusals tells of the limits")
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        server = Server(given.key, given.slots, given.loading_s, given.everybody, _limits(given), given.tally)
        asyncio.run(_serve(server, given.port))


def _limits(given: argparse.Namespace) -> Limits | None:
    buckets = {}
    if given.rpm:
        buckets["requests"] = Bucket(given.rpm, given.burst)
    if given.tpm:
        buckets["tokens"] = Bucket(given.tpm, given.token_burst or given.tpm)
    return Limits(buckets, not given.untold) if buckets else None


if __name__ == "__main__":
    main()
