"""Real model servers, really started and really killed."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import urllib3

from backends import engine, guarded, modelserver
from backends.modelserver import ModelServer, ModelServerFailed
from config import Settings, load
from tests.real.memory_group import NoGroup, memory_group

ROOT = Path(__file__).resolve().parent.parent.parent
STUB = f"{shlex.quote(sys.executable)} {shlex.quote(str(Path(__file__).with_name('openai_stub.py')))} {{port}}"
PARENT = """
import sys, time
from backends.modelserver import ModelServer
from config import load
server = ModelServer(load(), 0, lambda line: None)
server.start()
print(*server.pids(), flush=True)
time.sleep(600)
"""


def settings(**variables: str) -> Settings:
    return load({"NODE_TYPE": "local", "MODEL_NAME": "m", "PULSAR_URL": "pulsar://127.0.0.1:1", "BOOT_TIMEOUT_S": "60", **variables})


def weights() -> str:
    try:
        return str(engine.weights(settings()))
    except ModelServerFailed as absent:
        if os.environ.get("CI") == "true":
            pytest.fail(absent.message)
        pytest.skip(absent.message)


def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "not within its time"
        time.sleep(0.02)
    return value


def living(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found


def all_gone(pids: list[int]) -> bool:
    assert pids, "nothing was started: this would prove nothing"
    until(lambda: not living(pids))
    return True


def ask(server: ModelServer, content: str) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 24}
    answer = urllib3.request("POST", f"{server.base_url}/chat/completions", json=body, timeout=60.0, retries=False)
    assert answer.status == 200, answer.data
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture
def start() -> Iterator[Callable[..., ModelServer]]:
    started: list[ModelServer] = []

    def begin(**variables: str) -> ModelServer:
        server = ModelServer(settings(**variables), 0, print)
        started.append(server)
        server.start()
        return server

    yield begin
    for server in started:
        server.stop(1.0)


def test_smollm2_knows_the_capital_of_france_and_leaves_nothing_behind(start: Callable[..., ModelServer]) -> None:
    server = start(MODEL_PATH=weights(), MAX_PROCESS_NUM="3")
    assert server.slots == 3 and server.alive()
    answer = ask(server, "What is the capital of France? Answer in one sentence.")
    assert "Paris" in answer["choices"][0]["message"]["content"]
    pids = server.pids()
    server.stop(5.0)
    assert all_gone(pids) and not server.alive()
    assert "SIGTERM" in server.exit_report()


def test_any_command_that_serves_the_api(start: Callable[..., ModelServer], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"API_KEY": "sk-12345", "X": "is sk-12345 too", "AWS_SECRET_ACCESS_KEY": "s", "HF_TOKEN": "hf", "PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    server = start(MODEL_COMMAND=STUB, MAX_PROCESS_NUM="7", API_KEY="sk-12345")
    answer = ask(server, "hello")
    assert answer["choices"][0]["message"]["content"] == "hello"
    assert server.slots == 7, "without /props, what the node may take"
    given = answer["environ"]
    assert not {"API_KEY", "X", "AWS_SECRET_ACCESS_KEY", "PORT"} & set(given) and given["HF_TOKEN"] == "hf" and given["PATH"]


def test_a_talkative_server_is_not_blocked_by_its_own_output(start: Callable[..., ModelServer]) -> None:
    server = start(MODEL_COMMAND=f"{STUB} --flood")  # 2 MB, where a pipe holds 64 KiB
    assert ask(server, "hello")
    server.stop(2.0)
    assert len(server.exit_report()) < 4000


def test_its_log_is_kept_beside_the_nodes_state_and_stays_small(
    start: Callable[..., ModelServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded, "MAX_LOG_BYTES", 500_000)
    server = start(MODEL_COMMAND=f"{STUB} --flood", STATE_DIR=str(tmp_path))
    server.stop(2.0)
    kept = [path.read_bytes() for path in (tmp_path / "model-server-0.log.1", tmp_path / "model-server-0.log")]
    assert b"line 19000 " in b"".join(kept) and all(len(text) < 1_000_000 for text in kept)


@pytest.mark.parametrize(
    ("command", "permanent", "words"),
    [
        ("no-such-command-here {port}", True, "no such command"),
        ("/etc/passwd {port}", True, "cannot be executed"),
        ("sh -c 'echo out of luck >&2; exit 3' {port}", True, "exit code 3"),
        ("sh -c 'echo CUDA error: out of memory >&2; exit 1' {port}", True, "does not fit into the memory of the GPU"),
        ("sh -c 'echo ggml: failed to allocate buffer >&2; exit 1' {port}", True, "were free in this machine. Take a smaller model"),
        ("sh -c 'kill -KILL $$' {port}", False, "want of memory"),
        ("sh -c 'kill -ILL $$' {port}", True, "another processor"),
        ("sh -c 'unbalanced {port}", True, "MODEL_COMMAND cannot be read"),
        ("sh -c true", True, "should hold {port}"),
    ],
)
def test_a_command_that_does_not_start(start: Callable[..., ModelServer], command: str, permanent: bool, words: str) -> None:
    with pytest.raises(ModelServerFailed) as failed:
        start(MODEL_COMMAND=command)
    assert words in failed.value.message and failed.value.permanent is permanent
    if "echo out" in command:
        assert "| out of luck" in failed.value.message


def test_a_command_that_never_gets_healthy(start: Callable[..., ModelServer]) -> None:
    with pytest.raises(ModelServerFailed, match=r"not ready after 1 s \(BOOT_TIMEOUT_S\)") as failed:
        start(MODEL_COMMAND=f"{STUB} --silent", BOOT_TIMEOUT_S="1")
    assert not failed.value.permanent


def test_a_damaged_model_file(start: Callable[..., ModelServer], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF\3\0\0\0" + bytes(8))
    with pytest.raises(ModelServerFailed, match="did not start") as failed:
        start(MODEL_PATH=str(damaged))
    assert failed.value.permanent


def test_a_truncated_model_file(start: Callable[..., ModelServer], tmp_path: Path) -> None:
    truncated = tmp_path / "truncated.gguf"
    with open(weights(), "rb") as whole:
        truncated.write_bytes(whole.read(20_000_000))
    with pytest.raises(ModelServerFailed, match="damaged or incomplete") as failed:
        start(MODEL_PATH=str(truncated))
    assert failed.value.permanent


def test_what_is_no_model_file(start: Callable[..., ModelServer], tmp_path: Path) -> None:
    text = tmp_path / "model.gguf"
    text.write_text("<html>404 Not Found</html>")
    with pytest.raises(ModelServerFailed, match="neither a GGUF file nor a llamafile") as failed:
        start(MODEL_PATH=str(text))
    assert failed.value.permanent


def test_a_llamafile_is_run_through_sh(start: Callable[..., ModelServer], tmp_path: Path) -> None:
    llamafile = tmp_path / "model.llamafile"  # as the real one, no kernel would exec it; sh does
    given = "--server --nobrowser --host 127.0.0.1 --port $6 -np 2 -c 8192"
    llamafile.write_text(f'[ "$*" = "{given}" ] && exec {STUB.replace("{port}", "$6")}\n')
    server = start(MODEL_PATH=str(llamafile), MAX_PROCESS_NUM="2")
    assert server.slots == 1 and ask(server, "hello")


def test_a_model_that_is_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine, "ROOT", tmp_path)
    monkeypatch.setattr(engine, "DEFAULT_WEIGHTS_PACKAGE", "no_such_package_here")
    server = ModelServer(settings(), 0, print)
    with pytest.raises(ModelServerFailed, match=r"\./local\.sh") as failed:
        server.start()
    assert failed.value.permanent and not server.alive() and server.pids() == []
    server.stop(1.0)


def test_a_port_that_was_taken_meanwhile(start: Callable[..., ModelServer], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))  # bound but not listening: nobody answers there in the server's place
        real, taken = modelserver._free_port, [other.getsockname()[1]]
        monkeypatch.setattr(modelserver, "_free_port", lambda: taken.pop() if taken else real())
        assert ask(start(MODEL_COMMAND=STUB), "hello")


STARVED = """
import os, sys
from pathlib import Path
from backends.modelserver import ModelServer, ModelServerFailed
from config import load
from tests.real.memory_group import join
join(Path(sys.argv[1]), os.getpid())
try:
    ModelServer(load(), 0, lambda line: None).start()
except ModelServerFailed as failed:
    print(failed.permanent, failed.message)
"""


def test_want_of_memory_at_load_is_explained() -> None:
    """In a cgroup that holds the file, and not the slots' contexts as well: the kernel kills it."""
    try:
        with memory_group(200) as folder:
            environ = {**os.environ, "NODE_TYPE": "local", "MODEL_NAME": "m", "PULSAR_URL": "pulsar://127.0.0.1:1",
                       "MODEL_PATH": weights(), "PYTHONPATH": str(ROOT)}  # fmt: skip
            done = subprocess.run([sys.executable, "-c", STARVED, str(folder)], env=environ, capture_output=True, text=True, timeout=90)
    except NoGroup as why:
        pytest.skip(str(why))
    assert done.stdout.startswith("False the model server for SmolLM2-135M-Instruct.Q4_1.gguf did not start"), done.stdout + done.stderr
    assert "the kernel killed it: the model does not fit into the memory that there is: its file has 94 MiB" in done.stdout
    assert "slots of 4,096 tokens come on top" in done.stdout and "of 200 MiB of memory were free in cgroup /" in done.stdout
    assert "lower MAX_PROCESS_NUM" in done.stdout


def test_a_server_that_dies_later_is_reported(start: Callable[..., ModelServer]) -> None:
    server = start(MODEL_COMMAND=STUB)
    os.kill(server.pids()[1], signal.SIGKILL)
    until(lambda: not server.alive())
    assert "SIGKILL" in server.exit_report() and "want of memory" in server.exit_report()


def family(server: ModelServer) -> list[int]:
    """The pids of a stub with `--family`: guard, server, its child and grandchild, the daemon and its child."""
    return until(lambda: found if len(found := server.pids()) >= 6 else [])  # type: ignore[no-any-return]


def test_grandchildren_that_ignore_term_end_too(start: Callable[..., ModelServer]) -> None:
    server = start(MODEL_COMMAND=f"{STUB} --family")
    pids = family(server)
    server.stop(0.6)
    assert all_gone(pids) and "SIGKILL" in server.exit_report()


def test_grandchildren_do_not_outlive_their_server(start: Callable[..., ModelServer]) -> None:
    server = start(MODEL_COMMAND=f"{STUB} --family")
    pids = family(server)
    os.kill(pids[1], signal.SIGKILL)
    assert all_gone(pids)


def test_nothing_outlives_a_killed_guard(start: Callable[..., ModelServer]) -> None:
    server = start(MODEL_COMMAND=f"{STUB} --family")
    pids = family(server)
    os.kill(pids[0], signal.SIGKILL)
    assert all_gone(pids)
    until(lambda: not server.alive())
    assert "guard was killed by signal SIGKILL" in server.exit_report()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_child_however_it_ends(number: signal.Signals) -> None:
    environ = {**os.environ, "NODE_TYPE": "local", "MODEL_NAME": "m", "PULSAR_URL": "pulsar://127.0.0.1:1",
               "MODEL_COMMAND": f"{STUB} --family", "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", PARENT], env=environ, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        guard = psutil.Process(int(child.stdout.readline().split()[0]))
        pids = [guard.pid, *until(lambda: p if len(p := [c.pid for c in guard.children(recursive=True)]) >= 5 else [])]
        child.send_signal(number)
        assert all_gone(pids)
    finally:
        child.kill()
        child.communicate()
