"""What a child's death costs: `python -m bench.deaths [--kills 50]`, on the embedded broker and demo children.

Prints how long after SIGKILL the node noticed, when the replacement's first answer came, and what the deaths cost the
requests of the other children, side by side with a calm run."""

from __future__ import annotations

import argparse
import re
import signal
import statistics
import threading
import time
import uuid
from datetime import UTC, datetime

import psutil

from tests.real.embedded_broker import EmbeddedBroker
from tests.real.node import NodeProcess
from tests.real.processes import wait_until
from tests.real.requester import Requester
from tests.real.topics import Topics

SERVED_BY_ONE = "1"
LOAD_EACH_S = 0.02


def body(requester: Requester) -> dict[str, object]:
    return {"request_id": str(uuid.uuid4()), "stream": False, "endpoint": requester.http_url, "data": {"messages": []}}


def answered(requester: Requester, request_id: str) -> float:
    """Its time, monotonic."""
    wait_until(lambda: requester.posts(request_id), within_s=20, what="an answer", every_s=0.001)
    return requester.posts(request_id)[0].at_s


def working_child(node: NodeProcess, requester: Requester, topics: Topics) -> psutil.Process:
    """The one that answered last: what it has used of the processor tells."""
    before = {child.pid: child.cpu_times().user + child.cpu_times().system for child in node.backends()}
    for _ in range(30):
        asked = body(requester)
        topics.publish(asked)
        answered(requester, str(asked["request_id"]))
    return max(node.backends(), key=lambda c: c.cpu_times().user + c.cpu_times().system - before.get(c.pid, 1e9))


def kill_and_ask(node: NodeProcess, requester: Requester, topics: Topics) -> tuple[float, float]:
    """Until it was noticed, until the replacement's first answer; seconds."""
    victim, asked, deaths = working_child(node, requester, topics), body(requester), node.log().count("ended: signal")
    killed_s, killed_at = time.monotonic(), time.time()
    victim.send_signal(signal.SIGKILL)
    topics.publish(asked)
    first_s = answered(requester, str(asked["request_id"])) - killed_s
    wait_until(lambda: node.log().count("ended: signal") > deaths, within_s=10, what="the death in the log")
    stamps = re.findall(r"^(\S+ \S+) .*ended: signal", node.log(), re.MULTILINE)
    noticed_at = datetime.strptime(stamps[-1], "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC).timestamp()
    ready = node.log().count(" is ready after ")
    wait_until(lambda: node.log().count(" is ready after ") > ready or len(node.backends()) > 1, within_s=10, what="a new spare")
    time.sleep(0.5)
    return noticed_at - killed_at, first_s


def single(broker: EmbeddedBroker, kills: int) -> None:
    variables = {"PULSAR_URL": broker.url, "MODEL_NAME": "single", "BACKEND_PROCESSES": SERVED_BY_ONE, "RES_TOPIC_NAME": "res-single"}
    with Requester() as requester, Topics(broker.url, "single", "res-single") as topics, NodeProcess(variables) as node:
        time.sleep(1)
        seen = [kill_and_ask(node, requester, topics) for _ in range(kills)]
    noticed, first = ([1000 * pair[n] for pair in seen] for n in (0, 1))
    print(f"noticed after {statistics.median(noticed):.1f} ms (median of {kills}), at most {max(noticed):.1f}")
    print(f"the replacement's first answer after {statistics.median(first):.0f} ms (median), at most {max(first):.0f}")


def others(broker: EmbeddedBroker, kills: int) -> None:
    variables = {"PULSAR_URL": broker.url, "MODEL_NAME": "others", "BACKEND_PROCESSES": "2", "RES_TOPIC_NAME": "res-others"}
    with Requester() as requester, Topics(broker.url, "others", "res-others") as topics, NodeProcess(variables) as node:
        time.sleep(1)
        for round_ in range(2):
            calm = measure(requester, topics, kills)
            stop = threading.Event()
            killer = threading.Thread(target=kill_on, args=(node, stop))
            killer.start()
            stormy = measure(requester, topics, kills)
            stop.set()
            killer.join()
            ratio = stormy / calm
            print(f"round {round_ + 1}: p99 of requests no death touched {calm:.1f} → {stormy:.1f} ms with a death each 0.5 s: {ratio:.2f}")
            time.sleep(3)


def kill_on(node: NodeProcess, stop: threading.Event) -> None:
    while not stop.wait(0.5):
        node.backends()[0].send_signal(signal.SIGKILL)


def measure(requester: Requester, topics: Topics, kills: int) -> float:
    """p99 in ms, from publish to answer, of those that needed one attempt."""
    sent: dict[str, float] = {}
    end_s = time.monotonic() + kills * 0.5
    while time.monotonic() < end_s:
        asked = body(requester)
        sent[str(asked["request_id"])] = time.monotonic()
        topics.publish(asked)
        time.sleep(LOAD_EACH_S)
    first_attempts = [record["request_id"] for record in topics.records_of(set(sent), 60) if record["attempt"] == 1]
    return 1000 * statistics.quantiles([requester.posts(name)[0].at_s - sent[name] for name in first_attempts], n=100)[98]


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.deaths", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    options = parser.parse_args()
    broker = EmbeddedBroker().start()
    try:
        single(broker, options.kills)
        others(broker, options.kills)
    finally:
        broker.close()


if __name__ == "__main__":
    main()
