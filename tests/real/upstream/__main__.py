"""`python -m tests.real.upstream --port 0`: serves until SIGTERM; its first line is its address."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal

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
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(Server(given.key, given.slots, given.loading_s, given.everybody, given.tally), given.port))


if __name__ == "__main__":
    main()
