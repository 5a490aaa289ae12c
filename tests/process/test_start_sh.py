"""start.sh for real, in a copy of the repository whose path holds a blank: ready, Ctrl-C, and everything that may fail."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from tests.real.processes import REPOSITORY, end_group, free_port, wait_until

SECRET = "sk-not-to-be-seen"


def tree_of_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, check=True, text=True
    )
    return [name for name in listed.stdout.split("\0") if name and (REPOSITORY / name).is_file()]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What a clone holds, and a .venv that counts as installed: its Python is the one that runs the tests."""
    folder = tmp_path / "a clone"
    for name in tree_of_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    for program in ("python", "pip"):
        script(folder / ".venv" / "bin" / program, f'exec "{sys.executable}" "$@"')
    with (folder / "requirement.txt").open("rb") as requirements:
        sum_and_size = subprocess.run(["cksum"], stdin=requirements, capture_output=True, check=True, text=True).stdout
    (folder / ".venv" / f".installed-requirement.txt-{'-'.join(sum_and_size.split())}").touch()
    return folder


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


class Started:
    """./start.sh as a terminal runs it: leader of the foreground process group. Nothing but PATH in its environment, and
    a folder of its own for temporary files."""

    def __init__(self, clone: Path, *arguments: str, path: str = "", **variables: str) -> None:
        self.port = int(variables.get("PORT", 0)) or free_port()
        self.temporary = clone.parent / "temporary"
        self.temporary.mkdir(exist_ok=True)
        self._out, self._err = clone.parent / "out", clone.parent / "err"
        self.began_s = time.monotonic()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [clone / "start.sh", *arguments], cwd=clone, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
                env={"PATH": path + os.environ["PATH"], "TMPDIR": str(self.temporary), "PORT": str(self.port), **variables},
            )  # fmt: skip

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait_for(self, word: str) -> None:
        def said() -> bool:
            found = word in self.out + self.err
            assert found or self.process.poll() is None, self.out + self.err
            return found

        wait_until(said, within_s=30, what=word, every_s=0.02)

    def tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def end(self, sent: signal.Signals) -> int:
        """To the whole foreground group, as a terminal does. Afterwards nothing is left of it."""
        processes = self.tree()
        ports = {c.laddr.port for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
        os.killpg(self.process.pid, sent)
        code = self.wait()
        assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        for port in ports:
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port)) != 0, f"something still listens on {port}"
        return code

    def wait(self) -> int:
        code = self.process.wait(30)
        assert not list(self.temporary.iterdir())
        return code


Start = Callable[..., Started]  # (*arguments, path="", **variables)


@pytest.fixture
def started(clone: Path) -> Iterator[Start]:
    """Starts them in the clone; whatever a failed test leaves of one is killed."""
    made: list[Started] = []

    def start(*arguments: str, path: str = "", **variables: str) -> Started:
        made.append(Started(clone, *arguments, path=path, **variables))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            left = one.tree()
            end_group(one.process, signal.SIGKILL)
            for process in left:
                if process.is_running():
                    process.kill()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_demo_is_ready_soon_answers_and_leaves_nothing(clone: Path, started: Start, sent: signal.Signals, code: int) -> None:
    running = started("demo")
    running.wait_for("Ctrl-C")
    assert time.monotonic() - running.began_s < (30 if os.environ.get("CI") else 10), "3 s on an idle machine"
    first, second, third, _ = running.out.splitlines()
    assert first == f"WorkerNode serves the model static (demo) at http://127.0.0.1:{running.port}/v1"
    ask = f"PORT={running.port} ./ai.sh"
    assert second == f"Next, in another terminal: {ask}   or   {ask} stream"
    assert third.startswith(f"In a browser: http://127.0.0.1:{running.port}/ to chat")
    for command, said in ((ask, '"content":"This is WorkerNode'), (f"{ask} stream 'Tell me'", "data: [DONE]")):
        asked = subprocess.run(command, shell=True, cwd=clone, capture_output=True, text=True, timeout=30, check=False)
        assert asked.returncode == 0 and said in asked.stdout, asked.stderr
    assert running.end(sent) == code
    assert "ended with exit code 0" in running.err and "Traceback" not in running.err


def test_the_nodes_own_end_is_told_with_its_code(started: Start) -> None:
    running = started("demo")
    running.wait_for("Ctrl-C")
    node = next(p for p in psutil.Process(running.process.pid).children() if "supervisor.py" in p.cmdline())
    node.terminate()
    assert running.wait() == 0
    assert "the node ended by itself, with exit code 0" in running.err.splitlines()[-1]


def test_a_mistake_that_the_node_finds_is_told_with_its_code(started: Start) -> None:
    running = started("demo", MAX_ATTEMPTS="none")
    assert running.wait() == 78
    mistake, last = running.err.splitlines()
    assert mistake.startswith("configuration: MAX_ATTEMPTS should") and "before it was ready, with exit code 78" in last


def test_a_node_that_ends_well_before_it_is_ready_is_a_failure(clone: Path, started: Start) -> None:
    (clone / "supervisor.py").write_text("print('nothing to do')\n")
    running = started("demo")
    assert running.wait() == 1
    assert running.err.splitlines()[0] == "nothing to do" and "with exit code 0" in running.err


def test_a_taken_port(started: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        running = started("demo", PORT=str(taken.getsockname()[1]))
        assert running.wait() == 1
    assert f"port {running.port} is taken" in running.err


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        ([], {"API_URL": "http://127.0.0.1:1", "API_KEY": SECRET}, "which API_URL and API_KEY stand for, needs MODEL_NAME"),
        (["remote"], {"API_URL": "http://127.0.0.1:1"}, "remote needs MODEL_NAME"),
        (["remote"], {"MODEL_NAME": "m"}, "remote needs API_URL"),
        (["local"], {"MODEL_COMMAND": "serve --port {port}"}, "MODEL_COMMAND needs MODEL_NAME"),
        ([], {"NODE_TYPE": "other"}, "NODE_TYPE should be demo, local or remote (it is 'other')"),
        (["local", "--docker"], {}, "the image holds no model server"),
        (["demo"], {"PULSAR_HOME": "/nowhere"}, "there is no bin/pulsar in PULSAR_HOME=/nowhere"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_installed(
    clone: Path, started: Start, arguments: list[str], variables: dict[str, str], said: str
) -> None:
    script(clone / "scripts" / "venv", "echo installing; exit 1")
    running = started(*arguments, **variables)
    assert running.wait() == 1
    assert said in running.err and SECRET not in running.err and not running.out


def test_a_failed_installation_is_told(clone: Path, started: Start) -> None:
    script(clone / "scripts" / "venv", "echo 'no network' >&2; exit 3")
    running = started("demo")
    assert running.wait() == 1
    assert running.err.splitlines() == ["no network", "start.sh: this could not be set up; the lines above say why"]


def test_an_installation_is_interrupted_at_once(clone: Path, started: Start) -> None:
    script(clone / "scripts" / "venv", 'mktemp >/dev/null; echo installing; sleep 600; echo "not reached"')
    for sent, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        running = started("demo")
        running.wait_for("installing")
        assert running.end(sent) == code


def test_the_env_file_is_read_and_the_environment_goes_before_it(clone: Path, started: Start) -> None:
    (clone / ".env").write_text(
        "# a comment\n\nNODE_TYPE=demo\r\nexport MODEL_NAME='from-the-file'\nMAX_ATTEMPTS=\"5\"\nPORT=1\nTIMEOUT=$(touch ran)\nDEBUG="
    )
    (clone / "supervisor.py").write_text(
        "import os\nprint(*(repr(os.environ.get(n)) for n in ('NODE_TYPE', 'MODEL_NAME', 'MAX_ATTEMPTS', 'PORT', 'TIMEOUT', 'DEBUG')))\n"
    )
    running = started(MAX_ATTEMPTS="7")
    assert running.wait() == 1
    assert running.err.splitlines()[0] == f"'demo' 'from-the-file' '7' '{running.port}' '$(touch ran)' ''"
    (clone / ".env").write_text("NODE_TYPE=demo\nwhat is this\n")
    running = started()
    assert running.wait() == 1 and "line 2 of .env" in running.err


@pytest.fixture
def pulsar_home(tmp_path: Path) -> Iterator[Path]:
    """For a stand-in of Pulsar's script, beside a stand-in of Java; without a blank in its path, which Pulsar's bears not."""
    if " " in str(tmp_path) or not (port_is_free(6650) and port_is_free(8080)):
        pytest.skip("Pulsar's own ports are taken")
    script(tmp_path / "java-bin" / "java", "exit 0")
    yield tmp_path / "pulsar"


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_pulsar_that_does_not_start_is_quoted(pulsar_home: Path, started: Start) -> None:
    script(pulsar_home / "bin" / "pulsar", "echo no memory; exit 1")
    running = started("demo", path=f"{pulsar_home.parent}/java-bin:", PULSAR_HOME=str(pulsar_home))
    assert running.wait() == 1
    assert running.err.splitlines() == ["no memory", "start.sh: Pulsar ended while it started; its last lines are above"]


def test_a_pulsar_is_started_used_and_ended(clone: Path, pulsar_home: Path, started: Start) -> None:
    """The embedded broker in its place: as the child of a script, as Java is of Pulsar's."""
    broker = f'"{sys.executable}" -m broker --data "{pulsar_home}/data" --port 6650 --admin-port 8080'
    script(pulsar_home / "bin" / "pulsar", f'echo "$@" >"{pulsar_home}/called"; cd "{clone}"; {broker}; exit')
    running = started("demo", path=f"{pulsar_home.parent}/java-bin:", PULSAR_HOME=str(pulsar_home))
    running.wait_for("Ctrl-C")
    assert (pulsar_home / "called").read_text() == "standalone -nfw -nss\n"
    assert "subscribed at pulsar://127.0.0.1:6650" in running.err and running.out.count("\n") == 5
    assert running.end(signal.SIGINT) == 130
    assert port_is_free(6650) and port_is_free(8080)


DOCKER = """
case $1 in
  version) exit {engine} ;;
  build) echo built >&2 ;;
  run) shift; for argument; do echo "argument $argument" >&2; done; echo "key ${{#API_KEY}}" >&2
    printf "%s\\n" "gateway is ready" "subscribed at x" "backend 0 is ready after 1 s" >&2; exec sleep 600 ;;
  rm) touch "{removed}" ;;
esac
"""


def test_docker_gets_every_variable_and_no_secret_in_its_arguments(clone: Path, tmp_path: Path, started: Start) -> None:
    (clone / "Dockerfile").touch()
    script(tmp_path / "docker-bin" / "docker", DOCKER.format(engine=0, removed=tmp_path / "removed"))
    (clone / "ca.pem").touch()
    more = {"API_URL": "http://127.0.0.1:1", "API_KEY": SECRET, "MODEL_NAME": "m", "READ_TIMEOUT_S": "9", "CA_BUNDLE": "ca.pem"}
    running = started("--docker", path=f"{tmp_path}/docker-bin:", **more)
    running.wait_for("Ctrl-C")
    words = [line.removeprefix("argument ") for line in running.err.splitlines() if line.startswith("argument ")]
    given = {"NODE_TYPE", "PORT", "HOST", "STATE_DIR", "STATUS_PORT", *more}
    assert given == {word for before, word in pairwise(words) if before == "--env"}
    assert f"{clone}/ca.pem:{clone}/ca.pem:ro" in words
    assert f"{clone}/state:{clone}/state" in words and f"{os.getuid()}:{os.getgid()}" in words
    assert SECRET not in running.err and f"key {len(SECRET)}" in running.err
    assert running.end(signal.SIGINT) == 130
    assert (tmp_path / "removed").exists()


@pytest.mark.parametrize(("dockerfile", "said"), [(False, "there is none: leave --docker away"), (True, "start.sh: --docker:")])
def test_docker_without_an_image_or_an_engine(clone: Path, tmp_path: Path, started: Start, dockerfile: bool, said: str) -> None:
    (clone / "Dockerfile").unlink(missing_ok=True)
    if dockerfile:
        (clone / "Dockerfile").touch()
    script(tmp_path / "docker-bin" / "docker", DOCKER.format(engine=1, removed=tmp_path / "removed"))
    running = started("demo", "--docker", path=f"{tmp_path}/docker-bin:")
    assert running.wait() == 1 and said in running.err


def test_help_and_wrong_words(started: Start) -> None:
    helped, wrong = started("--help"), started("demos")
    assert (helped.wait(), wrong.wait()) == (0, 64)
    assert "Usage: ./start.sh [demo|local|remote]" in wrong.err
