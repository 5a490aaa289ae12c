"""local.sh with models of one's own: checked, resumed, refused. It runs in a copy that installs nothing."""

from __future__ import annotations

import hashlib
import http.server
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.processes import REPOSITORY

GGUF = b"GGUF" + bytes(range(256)) * 400
SHA256 = hashlib.sha256(GGUF).hexdigest()


class FileServer(http.server.ThreadingHTTPServer):
    """Serves GGUF under every path, from the byte that is asked for; `breaks_after` cuts one answer short."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.breaks_after: int | None = None
        self.ranges: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(re.findall(r"\d+", asked)[0]) if asked else 0
        rest = GGUF[start:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(rest)))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(GGUF) - 1}/{len(GGUF)}")
        self.end_headers()
        self.wfile.write(rest[: self.server.breaks_after])
        self.server.breaks_after = None

    def log_message(self, *_: object) -> None:
        """Not into the tests' output."""


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as serving:
        threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield serving
        serving.shutdown()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with a space in its name, as a clone may have; its scripts/venv only notes that it was called."""
    folder = tmp_path / "a clone"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(REPOSITORY / "local.sh", folder)
    (folder / "scripts" / "venv").write_text('#!/bin/sh\necho "$@" >>"$(dirname "$0")/called"\n')
    (folder / "scripts" / "venv").chmod(0o755)
    return folder


def local_sh(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run from the folder above, so that nothing hangs on the current one."""
    return subprocess.run([clone / "local.sh", *arguments], cwd=clone.parent, capture_output=True, text=True, timeout=30, check=False)


def test_an_interrupted_download_is_resumed(clone: Path, server: FileServer) -> None:
    server.breaks_after = 50_000
    first = local_sh(clone, f"{server.url}/some.gguf?download=true", SHA256)
    assert first.returncode == 1 and "goes on where it stopped" in first.stderr
    assert not (clone / "models" / "some.gguf").exists()
    second = local_sh(clone, f"{server.url}/some.gguf?download=true", SHA256)
    assert second.returncode == 0, second.stderr
    assert server.ranges == [None, "bytes=50000-"]
    assert (clone / "models" / "some.gguf").read_bytes() == GGUF
    assert r"MODEL_PATH=" in second.stdout and r"a\ clone/models/some.gguf" in second.stdout
    third = local_sh(clone, f"{server.url}/some.gguf", SHA256.upper())
    assert third.returncode == 0 and len(server.ranges) == 2
    assert (clone / "scripts" / "called").read_text().startswith("requirement.txt requirement-local.txt")


def test_a_wrong_hash_is_refused_and_nothing_stays(clone: Path, server: FileServer) -> None:
    refused = local_sh(clone, f"{server.url}/some.gguf", "0" * 64)
    assert refused.returncode == 1 and SHA256 in refused.stderr
    assert list((clone / "models").iterdir()) == []


def test_a_whole_part_needs_no_download(clone: Path, server: FileServer) -> None:
    (clone / "models").mkdir()
    (clone / "models" / "some.gguf.part").write_bytes(GGUF)
    assert local_sh(clone, f"{server.url}/some.gguf", SHA256).returncode == 0
    assert server.ranges == []


def test_a_path_is_the_callers(clone: Path) -> None:
    (clone.parent / "mine.gguf").write_bytes(GGUF)
    used = local_sh(clone, "mine.gguf", SHA256)
    assert used.returncode == 0 and f"MODEL_PATH={clone.parent}/mine.gguf" in used.stdout
    assert local_sh(clone, "mine.gguf", "0" * 64).returncode == 1


def test_a_llamafile_is_made_executable_and_needs_no_server(clone: Path) -> None:
    model = clone.parent / "m.llamafile"
    model.write_bytes(b"MZqFpD='\n" + bytes(100))
    assert local_sh(clone, str(model)).returncode == 0
    assert model.stat().st_mode & 0o100 and not (clone / "scripts" / "called").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["page.html"], "neither a GGUF file nor a llamafile (it begins with '<html>"),
        (["absent.gguf"], "there is no file"),
        (["page.html", "abc"], "no SHA256"),
        (["http://127.0.0.1:1/m.gguf"], "the download failed"),
        (["https://example.invalid/"], "should end with a file's name"),
        (["--what"], "unknown option"),
    ],
)
def test_mistakes_are_named(clone: Path, arguments: list[str], said: str) -> None:
    (clone.parent / "page.html").write_text("<html><body>not found")
    refused = local_sh(clone, *arguments)
    assert refused.returncode == 1 and said in refused.stderr


def test_help(clone: Path) -> None:
    assert "PATH|URL" in local_sh(clone, "--help").stdout
