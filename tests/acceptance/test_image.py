"""The image, with a real Docker engine: built, run as the README says, asked, stopped.

Runs where a Docker daemon answers (its socket, or DOCKER_HOST). The build takes minutes the first time, and needs the
image python:3.11-slim and a package registry; WORKERNODE_IMAGE names an image that is built already.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.real.embedded_broker import EmbeddedBroker
from tests.real.processes import REPOSITORY, free_port, wait_until
from tests.real.upstream import Upstream

SECRET = "sk-never-to-be-seen-0123456789"
Run = Callable[..., "Container"]  # (variables, *options)


def docker(*arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout_s, check=False, cwd=REPOSITORY)


@pytest.fixture(scope="module")
def image() -> str:
    if not shutil.which("docker") or docker("version").returncode:
        pytest.skip("there is no Docker daemon to be had")
    if named := os.environ.get("WORKERNODE_IMAGE"):
        return named
    built = docker("build", "--network", "host", "-t", "workernode-test", ".", timeout_s=1200)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return "workernode-test"


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    server = EmbeddedBroker().start()
    yield server
    server.close()


class Container:
    """`docker run -d --network host …`, on ports of its own."""

    def __init__(self, image: str, variables: dict[str, str], options: tuple[str, ...]) -> None:
        self.port, self.status_port = free_port(), free_port()
        given = {"PORT": str(self.port), "STATUS_PORT": str(self.status_port), "HOST": "127.0.0.1", **variables}
        passed = [word for name, value in given.items() for word in ("-e", f"{name}={value}")]
        started = docker("run", "-d", "--network", "host", *passed, *options, image)
        assert started.returncode == 0, started.stderr
        self.id = started.stdout.strip()

    def log(self) -> str:
        found = docker("logs", self.id)
        return found.stdout + found.stderr

    def wait_log(self, *words: str, within_s: float = 60.0) -> None:
        try:
            wait_until(lambda: all(word in self.log() for word in words), within_s=within_s, what=f"{words!r}", every_s=0.3)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        return docker("exec", self.id, *command)

    def exit_code(self) -> int:
        return int(docker("wait", self.id).stdout)

    def ask(self) -> str:
        body = json.dumps({"model": "static", "messages": [{"role": "user", "content": "Hi"}]}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/chat/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(json.loads(answer.read())["choices"][0]["message"]["content"])


@pytest.fixture
def run(image: str) -> Iterator[Run]:
    started: list[Container] = []

    def begin(variables: dict[str, str], *options: str) -> Container:
        started.append(Container(image, variables, options))
        return started[-1]

    yield begin
    for container in started:
        docker("rm", "--force", "--volumes", container.id)


READY = ("subscribed at", "backend 0 is ready", "gateway is ready")


def test_as_the_readme_says_with_a_read_only_root(run: Run, broker: EmbeddedBroker) -> None:
    node = run({"PULSAR_URL": broker.url}, "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp",
               "--tmpfs=/var/lib/workernode:uid=10001,mode=0700")  # fmt: skip
    node.wait_log(*READY)
    assert node.ask().startswith("This is WorkerNode")
    assert node.execute("id", "-u").stdout == "10001\n"
    healthy = node.execute("python", "-m", "supervision.healthcheck")
    assert (healthy.returncode, healthy.stdout.split()[0]) == (0, "200")
    wait_until(lambda: docker("inspect", "-f", "{{.State.Health.Status}}", node.id).stdout == "healthy\n", within_s=90, what="health")
    broker.stop()
    wait_until(lambda: node.execute("python", "-m", "supervision.healthcheck").returncode == 1, within_s=60, what="unhealthy node")
    assert node.execute("python", "-m", "supervision.healthcheck", "/livez").returncode == 0


def test_another_nodes_status_port_is_not_taken_for_ones_own(run: Run, broker: EmbeddedBroker) -> None:
    first = run({"PULSAR_URL": broker.url})
    first.wait_log(*READY)
    second = run({"PULSAR_URL": broker.url, "STATUS_PORT": str(first.status_port)})
    second.wait_log(*READY, "STATUS_PORT should be free to bind")
    assert first.execute("python", "-m", "supervision.healthcheck").returncode == 0
    assert second.execute("python", "-m", "supervision.healthcheck", "/health").returncode == 0
    wrong = second.execute("python", "-m", "supervision.healthcheck")
    assert wrong.returncode == 1 and f"STATUS_PORT {first.status_port}" in wrong.stdout


def test_docker_stop_drains(run: Run, broker: EmbeddedBroker, upstream: Upstream, tmp_path: Path) -> None:
    """What runs is answered, and the exit code is 0; the key comes as a file and is seen nowhere."""
    key = tmp_path / "key"
    key.write_text(SECRET)
    key.chmod(0o644)
    remote = {"NODE_TYPE": "remote", "MODEL_NAME": "static", "API_URL": upstream.url, "UPSTREAM_MODEL": "mock?latency=3s"}
    node = run({"PULSAR_URL": broker.url, "API_KEY_FILE": "/run/secrets/key", **remote}, f"--volume={key}:/run/secrets/key:ro")
    node.wait_log(*READY)
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(node.ask()))
    asking.start()
    upstream.wait_for(lambda stats: stats["in_flight"] == 1, within_s=30)
    assert docker("stop", node.id).returncode == 0
    asking.join(30)
    assert answers and answers[0] and node.exit_code() == 0
    assert "receiving stops" in node.log() and "ended with exit code 0" in node.log()
    assert upstream.requests()[-1]["headers"]["authorization"] == f"Bearer {SECRET}"
    assert SECRET not in node.log() + docker("inspect", node.id).stdout


def test_a_mistake_ends_it_with_78(run: Run) -> None:
    node = run({"MAX_ATTEMPTS": "none"})
    assert node.exit_code() == 78
    assert node.log().startswith("configuration: MAX_ATTEMPTS should be")


def test_orphans_are_reaped(run: Run, broker: EmbeddedBroker) -> None:
    """What a killed model server leaves behind becomes a child of process 1, which has to be an init."""
    node = run({"PULSAR_URL": broker.url})
    node.wait_log(*READY)
    node.execute("sh", "-c", "(sleep 0.1 &) ; exit 0")
    states = "import psutil; print([p.name() for p in psutil.process_iter() if p.status() == 'zombie' and p.ppid() == 1])"
    wait_until(lambda: node.execute("python", "-c", states).stdout == "[]\n", within_s=10, what="process table without orphans")
    assert node.execute("sh", "-c", "tr '\\0' ' ' </proc/1/cmdline").stdout.startswith("tini -- python supervisor.py")


def test_nothing_of_this_machine_is_in_it(image: str) -> None:
    found = docker("run", "--rm", "--entrypoint", "ls", image, "-A", "/app").stdout.split()
    folders = {name for name in found if "." not in name} - {"__pycache__"}
    assert folders == code_folders() and not {".env", ".git", "tests"} & set(found)
    (settings,) = json.loads(docker("image", "inspect", image).stdout)
    names = {variable.partition("=")[0] for variable in settings["Config"]["Env"]}
    assert not [name for name in names if re.search("KEY|TOKEN|SECRET|PASSWORD", name) and name != "GPG_KEY"]  # Python's own
    assert settings["Config"]["User"] == "10001:10001" and settings["Config"]["Entrypoint"][0] == "tini"


def code_folders() -> set[str]:
    listed = subprocess.run(["git", "ls-files", "*/__init__.py"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return {name.split("/")[0] for name in listed.split()} - {"tests", "bench"}


def test_every_folder_of_code_comes_along() -> None:
    named = {line.removeprefix("!") for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if re.fullmatch(r"![a-z]+", line)}
    assert code_folders() <= named
