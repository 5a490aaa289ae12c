"""What a child's death costs: `python -m bench.deaths [--kills 50]`, on the embedded broker and demo children.

Prints how long after SIGKILL the node noticed, when the replacement's first answer came, and what the deaths cost the
requests of the other children, side by side with a calm run."""

from __future__ import annotations

import argparse
import re
import signal
import statistics
import time
import uuid
from datetime import UTC, datetime

import multiprocess
import psutil

from bench.stats import spread
from tests.real.embedded_broker import EmbeddedBroker
from tests.real.node import NodeProcess, backends_of
from tests.real.processes import wait_until
from tests.real.requester import Requester
from tests.real.topics import Topics

SERVED_BY_ONE = "1"
LOAD_EACH_S, AT_ONCE = 0.08, 4
KILL_EACH_S = 0.5
ROUNDS, WARM_UP_S = 5, 5


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
    """One backend stays, and beside it another dies again and again: what does the one that stays notice?"""
    variables = {"PULSAR_URL": broker.url, "MODEL_NAME": "others", "BACKEND_PROCESSES": "2", "RES_TOPIC_NAME": "res-others"}
    with Requester() as requester, Topics(broker.url, "others", "res-others") as topics, NodeProcess(variables) as node:
        wait_until(lambda: len(node.backends()) > 2, within_s=10, what="two backends and a spare")
        node.backends()[1].send_signal(signal.SIGKILL)  # so that the oldest works, if it was the spare
        times_of_answers(requester, topics, WARM_UP_S)
        ratios = [one_round(node, requester, topics, round_, kills / ROUNDS) for round_ in range(1, ROUNDS + 1)]
        print(f"median of the rounds: {statistics.median(ratios):.2f}")


def one_round(node: NodeProcess, requester: Requester, topics: Topics, round_: int, kills: float) -> float:
    """Calm, then deaths; the ratio of the two p99."""
    assert node.process is not None
    calm = times_of_answers(requester, topics, kills * KILL_EACH_S)
    killer = multiprocess.get_context("spawn").Process(target=kill_on, args=(node.process.pid,))
    killer.start()
    time.sleep(1)  # it has its imports to do
    stormy = times_of_answers(requester, topics, kills * KILL_EACH_S)
    killer.terminate()
    killer.join()
    time.sleep(1)
    stayed = {connection for connection, _ in calm} & {connection for connection, _ in stormy[-len(stormy) // 4 :]}
    before, during = (p99_ms([took_s for connection, took_s in seen if connection in stayed]) for seen in (calm, stormy))
    words = f"p99 of the child that stays {before:.1f} → {during:.1f} ms beside a death each {KILL_EACH_S} s: {during / before:.2f}"
    print(f"round {round_}: {words}; of all answers {p99_ms([s for _, s in calm]):.1f} → {p99_ms([s for _, s in stormy]):.1f} ms")
    return during / before


def kill_on(supervisor: int) -> None:
    """Never the oldest. A process of its own that looks for its victim long before it kills: its work is not to be measured."""
    while True:
        time.sleep(KILL_EACH_S / 2)
        victim = backends_of(supervisor)[1]
        time.sleep(KILL_EACH_S / 2)
        victim.send_signal(signal.SIGKILL)


def times_of_answers(requester: Requester, topics: Topics, during_s: float) -> list[tuple[int, float]]:
    """The connection and the seconds from publish to answer, of each request that needed one attempt."""
    sent: dict[str, float] = {}
    end_s = time.monotonic() + during_s
    while time.monotonic() < end_s:
        for _ in range(AT_ONCE):  # one at a time would all go to one child
            asked = body(requester)
            sent[str(asked["request_id"])] = time.monotonic()
            topics.publish(asked)
        time.sleep(LOAD_EACH_S)
    first_attempts = [record["request_id"] for record in topics.records_of(set(sent), 60) if record["attempt"] == 1]
    answers = sorted(((requester.posts(name)[0], sent[name]) for name in first_attempts), key=lambda pair: pair[1])
    return [(answer.connection, answer.at_s - sent_s) for answer, sent_s in answers]


def p99_ms(times_s: list[float]) -> float:
    return 1000 * spread(times_s).p(99)


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
