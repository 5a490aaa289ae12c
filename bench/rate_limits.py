"""How near nodes come to an upstream's rate limit: `python -m bench.rate_limits [--minutes 5] [--nodes 1]`.

A token bucket of 600 requests a minute that holds 10, answers after 200 ms. Nodes work off a long queue on the embedded
broker; beside them a naive client, which tries again with backoff as OpenAI's own does, has a bucket of its own. The
upstreams count, from the first request on. 100 % is what the limit grants in that time; the bucket, full at first, would
let 10 more in.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack, closing

import multiprocess
import urllib3

from tests.real.embedded_broker import EmbeddedBroker
from tests.real.node import NodeProcess
from tests.real.requester import Requester
from tests.real.topics import Topics
from tests.real.upstream import Upstream

RPM, BURST, LATENCY = 600, 10, "200ms"
AHEAD = 600  # published before, so that the queue is never empty
BODY = {"messages": [{"role": "user", "content": "Hello"}], "mock": f"mock?latency={LATENCY}"}


def naive(url: str, threads: int) -> None:
    """Threads that each ask again and again; until this process is ended."""
    pool = urllib3.PoolManager(maxsize=threads, retries=False)
    workers = [threading.Thread(target=_ask_for_ever, args=(pool, url), daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def _ask_for_ever(pool: urllib3.PoolManager, url: str) -> None:
    body, tries = json.dumps(BODY), 0
    while True:
        answer = pool.request("POST", f"{url}/v1/chat/completions", body=body, headers={"Content-Type": "application/json"})
        if answer.status == 200:
            tries = 0
        else:
            time.sleep(_backoff_s(tries, answer.headers))
            tries += 1


def _backoff_s(tries: int, headers: Mapping[str, str]) -> float:
    asked_s = float(headers.get("retry-after-ms", 0)) / 1000 or float(headers.get("retry-after", 0))
    if 0 < asked_s <= 120:
        return asked_s
    return min(0.5 * 2.0**tries, 8.0) * (1 - 0.25 * random.random())


def _publish_ahead(topics: Topics, requester: Requester, upstream: Upstream, published: int) -> int:
    wanted = upstream.stats()["answered"] + AHEAD
    for _ in range(published, wanted):
        topics.publish({"request_id": str(uuid.uuid4()), "stream": False, "endpoint": requester.http_url, "data": BODY})
    topics.flush()
    return max(published, wanted)


def run(minutes: float, nodes: int, threads: int, untold: bool) -> None:
    with ExitStack() as stack:
        broker = EmbeddedBroker().start()
        stack.enter_context(closing(broker))
        upstreams = [stack.enter_context(Upstream(rpm=RPM, burst=BURST, untold=int(untold))) for _ in range(2)]
        requester = stack.enter_context(Requester())
        topics = stack.enter_context(Topics(broker.url, "limited", "res-limited"))
        variables = {"PULSAR_URL": broker.url, "NODE_TYPE": "remote", "MODEL_NAME": "limited", "API_URL": upstreams[0].url,
                     "RES_TOPIC_NAME": "res-limited", "BACKEND_PROCESSES": "2", "REQUEST_TTL_S": "1h"}  # fmt: skip
        running = [stack.enter_context(NodeProcess(variables)) for _ in range(nodes)]
        client = multiprocess.get_context("spawn").Process(target=naive, args=(upstreams[1].url, threads), daemon=True)
        _measure(minutes, upstreams, topics, requester, client)
        client.terminate()
        print("requests of each node:", ", ".join(str(_answered(node)) for node in running))


def _measure(minutes: float, upstreams: list[Upstream], topics: Topics, requester: Requester, client: multiprocess.Process) -> None:
    published = _publish_ahead(topics, requester, upstreams[0], 0)
    upstreams[0].wait_for(lambda stats: stats["received"] > 0)
    started_s = time.monotonic()
    client.start()
    upstreams[1].wait_for(lambda stats: stats["received"] > 0, 30)
    late_s = time.monotonic() - started_s
    while (left_s := started_s + minutes * 60 - time.monotonic()) > 0:
        time.sleep(min(5.0, left_s))
        published = _publish_ahead(topics, requester, upstreams[0], published)
    _show("nodes", upstreams[0], time.monotonic() - started_s)
    time.sleep(late_s)
    _show("naive client", upstreams[1], time.monotonic() - started_s - late_s)


def _show(name: str, upstream: Upstream, took_s: float) -> None:
    stats = upstream.stats()
    let_in = stats["received"] - stats["limited"]
    granted = RPM / 60 * took_s
    words = f"{let_in} let in of {granted:.0f} granted in {took_s:.1f} s: {100 * let_in / granted:.1f} %"
    refused = f"{stats['limited']} refused with 429: {100 * stats['limited'] / stats['received']:.2f} %"
    print(f"{name:<13} {words} ({100 * let_in / (granted + BURST):.1f} % with the burst); {refused}", flush=True)


def _answered(node: NodeProcess) -> int:
    return node.log().count(" answered in ")


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.rate_limits", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=16, help="of the naive client")
    parser.add_argument("--untold", action="store_true", help="the upstream sends no x-ratelimit headers, only retry-after")
    options = parser.parse_args()
    run(options.minutes, options.nodes, options.threads, options.untold)


if __name__ == "__main__":
    main()
