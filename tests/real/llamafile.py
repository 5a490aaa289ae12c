"""The real llamafile 0.8.1, fetched once by npm into the cache, and made into one that brings its own model."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tests.real.pulsar_server import cache_folder, locked

PACKAGE, VERSION = "@x-cmd-pkg/llamafile", "0.0.1-v0.8.1-llamafile.8"
ALIGNED = 4096
_HEADER_BYTES, _FIELD_BYTES, _UNKNOWN_FIELD = 30, 4, 0x7777
_INSIDE = "llamafile.8/llamafile"


class LlamafileUnavailable(Exception):
    """None can be had on this machine; the message says what is missing."""


def llamafile() -> Path:
    """The program, without a model. Raises LlamafileUnavailable."""
    path = cache_folder() / f"llamafile-{VERSION}"
    if not path.is_file():
        with locked(cache_folder()):
            if not path.is_file():
                _fetch(path)
    return path


def with_model(model: Path, path: Path) -> Path:
    """A llamafile is a program and a zip file in one: the model goes into it, and a file of arguments that names it."""
    shutil.copy(llamafile(), path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        entry = zipfile.ZipInfo(model.name)
        before = archive.start_dir + _HEADER_BYTES + len(model.name) + _FIELD_BYTES
        padding = -before % ALIGNED  # the model is used where it lies
        entry.extra = struct.pack("<HH", _UNKNOWN_FIELD, padding) + bytes(padding)
        archive.writestr(entry, model.read_bytes())
        archive.writestr(".args", f"-m\n{model.name}\n...\n")
    return path


def _fetch(path: Path) -> None:
    if not shutil.which("npm"):
        raise LlamafileUnavailable(f"llamafile is not in {cache_folder()}, and there is no `npm` to fetch it with")
    with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
        command = ["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"]
        done = subprocess.run(command, cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)
        packages = list(Path(scratch).glob("*.tgz"))
        if done.returncode or not packages:
            raise LlamafileUnavailable(f"npm could not fetch {PACKAGE}: {(done.stdout + done.stderr)[-1000:]}")
        with tarfile.open(packages[0]) as package:
            package.extract("package/dist/llamafile.8.tar.xz", scratch, filter="data")
        with tarfile.open(Path(scratch) / "package/dist/llamafile.8.tar.xz") as inner:
            inner.extract(_INSIDE, scratch, filter="data")
        os.replace(Path(scratch) / _INSIDE, path)
