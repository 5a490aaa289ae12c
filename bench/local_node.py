"""A local node under a steady load, as the local_… modules measure it: SmolLM2 behind a model server of 16 slots."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import psutil

from backends.engine import DEFAULT_WEIGHTS, ROOT
from limits.cpu import CpuShare
from limits.processes import uses_of
from tests.real.embedded_broker import EmbeddedBroker
from tests.real.memory_group import join
from tests.real.node import NodeProcess
from tests.real.requester import Requester
from tests.real.topics import Topics

SLOTS, CONTEXT_TOKENS, ANSWER_TOKENS = 16, 512, 48
SERVER = f"{sys.executable} -m bench.local_server --model {{model}} --port {{port}} --slots {SLOTS} --context {CONTEXT_TOKENS}"
_CHANGE = re.compile(r"^(\S+ \S+) .*?limit (\d+) → (\d+): (.*)$", re.MULTILINE)


class Scene:
    """`with Scene(variables) as scene`: a broker, a node (`cgroup`: that it is in), a requester.

    `waiting`: how many requests there are always to be had more than run."""

    def __init__(self, variables: Mapping[str, str], *, server: str = SERVER, waiting: int = 8, cgroup: Path | None = None) -> None:
        self.model = f"bench-{uuid.uuid4().hex[:8]}"
        self._broker = EmbeddedBroker()
        self.requester = Requester()
        self.sent: dict[str, float] = {}
        self._ended_ids: set[str] = set()
        self._cpu = CpuShare(Path("/proc"), None)
        self._waiting, self._cgroup = waiting, cgroup
        self._ended = threading.Event()
        self.node = NodeProcess({
            "NODE_TYPE": "local", "MODEL_NAME": self.model, "MODEL_COMMAND": server,
            **({"MODEL_PATH": str(ROOT / "models" / DEFAULT_WEIGHTS)} if "{model}" in server else {}),
            "PULSAR_URL": self._broker.url, "RES_TOPIC_NAME": f"res-{self.model}", "MAX_PROCESS_NUM": str(SLOTS), **variables,
        })  # fmt: skip

    def __enter__(self) -> Scene:
        self._broker.start()
        self.requester.start()
        self.topics = Topics(self._broker.url, self.model, f"res-{self.model}")
        self.node.start(wait=False)
        if self._cgroup and self.node.process:
            join(self._cgroup, self.node.process.pid)
        self.node.wait_ready(120)
        self._loader = threading.Thread(target=self._load, daemon=True)
        self._loader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_load()
        self.node.__exit__()
        self.topics.__exit__(None, None, None)
        self.requester.stop()
        self._broker.close()

    def stop_load(self) -> None:
        self._ended.set()
        self._loader.join()

    def _load(self) -> None:
        """Streams of always as many tokens; as many open as run at most, and some that wait."""
        while not self._ended.wait(0.05):
            for _ in range(SLOTS + self._waiting - len(self.open())):
                self._publish()
            self.topics.flush()

    def _publish(self) -> None:
        request_id = str(uuid.uuid4())
        question = f"Request {request_id[:8]}: tell me a long story about a lighthouse and the sea."
        data = {"messages": [{"role": "user", "content": question}], "max_tokens": ANSWER_TOKENS, "ignore_eos": True, "temperature": 0}
        self.topics.publish({"request_id": request_id, "stream": True, "endpoint": self.requester.websocket_url, "data": data})
        self.sent[request_id] = time.monotonic()

    def open(self) -> list[str]:
        """Requests without an end."""
        for name in [name for name in list(self.sent) if name not in self._ended_ids]:
            if any(b'"end":true' in seen.text for seen in self.requester.frames(name)[-1:]):
                self._ended_ids.add(name)
        return [name for name in list(self.sent) if name not in self._ended_ids]

    def token_times(self) -> list[float]:
        """When each piece of output came (monotonic), in order."""
        return sorted(seen.at_s for name in list(self.sent) for seen in self.requester.frames(name))

    def errors(self) -> list[str]:
        """What requesters were told instead of all of an answer."""
        lasts = [seen.json for name in list(self.sent) for seen in self.requester.frames(name)[-1:]]
        return [str(last["data"]["error"]["message"]) for last in lasts if (last.get("data") or {}).get("error")]

    def rate(self, from_s: float, to_s: float) -> float:
        """Tokens a second."""
        return sum(from_s <= at_s < to_s for at_s in self.token_times()) / (to_s - from_s)

    def others_cpu_share(self) -> float | None:
        """Since the last call: what programs that have nothing to do with the measurement used of the CPU; None at first."""
        own = {process.pid for root in (os.getpid(), *self._roots()) for process in tree_of(root)}
        return self._cpu.look(time.monotonic(), uses_of(own))

    def _roots(self) -> list[int]:
        return [self.node.process.pid] if self.node.process else []

    def changes(self) -> list[tuple[float, int, str]]:
        """Of the limit: when (monotonic), to what, why; by the node's log."""
        ahead_s = time.time() - time.monotonic()
        found = []
        for stamp, _, limit, why in _CHANGE.findall(self.node.log()):
            at = datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC).timestamp()
            found.append((at - ahead_s, int(limit), why))
        return found


def tree_of(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []
