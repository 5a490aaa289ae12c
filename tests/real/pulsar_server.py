"""A real Apache Pulsar standalone for tests: fetched once, unpacked once into a cache, started on free ports.

`PulsarServer().start()` takes about 8 s on 2 cores and 300 MB (23 s and 1.2 GB with Pulsar's own JVM settings).
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.real.processes import end_group, free_port, start_bound, wait_until

VERSION = "4.0.6"
_FOLDER = f"apache-pulsar-{VERSION}"
_ARTIFACT = f"org.apache.pulsar:pulsar-server-distribution:{VERSION}:tar.gz:bin"
_START_DEADLINE_S = 120.0
_START_TRIES = 5

# Measured, start to ready: ZGC with pre-touched pages and both compilers 23 s, serial collector and C1 alone 8.3 s,
# without bytecode verification 7.0 s. A class-data archive would save 2 s more but takes 25 s to make.
_JVM = {
    "PULSAR_MEM": "-Xms256m -Xmx768m -XX:MaxDirectMemorySize=768m",
    "PULSAR_GC": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:+PerfDisableSharedMem"
    " -XX:+UnlockDiagnosticVMOptions -XX:-BytecodeVerificationRemote",
    "PULSAR_GC_LOG": " ",  # a blank, as an empty value means the default: a log of each collection
}


class PulsarUnavailable(Exception):
    """No Pulsar can be had on this machine; the message says what is missing."""


def cache_folder() -> Path:
    return Path(os.environ.get("WORKERNODE_CACHE") or Path.home() / ".cache" / "workernode")


def pulsar_home() -> Path:
    """The unpacked distribution, fetched and unpacked first where needed. Raises PulsarUnavailable."""
    if not shutil.which("java") and not os.environ.get("JAVA_HOME"):
        raise PulsarUnavailable("Apache Pulsar needs Java 17 or newer, and there is no `java`")
    if " " in str(cache_folder()):
        raise PulsarUnavailable(f"Pulsar's own script bears no blank in its path, {cache_folder()}: set WORKERNODE_CACHE to another folder")
    home = cache_folder() / _FOLDER
    if not home.is_dir():
        with locked(cache_folder()):
            if not home.is_dir():
                _unpack(_fetch(), home)
    return home


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One test run at a time fetches; a second one waits, then finds the result."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch() -> Path:
    """The archive in Maven's local repository, downloaded (244 MB) where it is not there yet."""
    repository = Path.home() / ".m2" / "repository"
    archive = repository / "org/apache/pulsar/pulsar-server-distribution" / VERSION / f"pulsar-server-distribution-{VERSION}-bin.tar.gz"
    if archive.is_file():
        return archive
    if not shutil.which("mvn"):
        raise PulsarUnavailable(f"Apache Pulsar {VERSION} is not in {cache_folder()}, and there is no `mvn` to fetch it with")
    command = ["mvn", "-q", "-B", "dependency:get", f"-Dartifact={_ARTIFACT}", "-Dtransitive=false", f"-Dmaven.repo.local={repository}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode or not archive.is_file():
        raise PulsarUnavailable(f"Maven could not fetch {_ARTIFACT}: {(done.stdout + done.stderr)[-1500:]}")
    return archive


def _unpack(archive: Path, home: Path) -> None:
    """Into a folder beside, then renamed: an interrupted run leaves nothing that looks complete."""
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".unpack-") as beside:
        done = subprocess.run(["tar", "-xzf", str(archive), "-C", beside], capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise PulsarUnavailable(f"{archive} could not be unpacked: {done.stderr[-500:]}")
        (Path(beside) / _FOLDER).rename(home)


class _LockSpin(Exception):
    """After a crash about one start in five of Pulsar 4.0.6 fails for good: it finds its bookie's registration of before
    the crash, replaces it, takes the notice of that removal for a loss, replaces it again, and so on, answering nobody.
    """


class PulsarServer:
    """One standalone. `start`, `stop` and `kill` may follow each other: ports and data stay the same until `close`."""

    def __init__(self, *, token_authentication: bool = False) -> None:
        self._home = pulsar_home()
        self._folder = Path(tempfile.mkdtemp(prefix="workernode-pulsar-"))
        self._log = self._folder / "log"
        self._port, self._web_port = free_port(), free_port()
        self.url = f"pulsar://127.0.0.1:{self._port}"
        self.admin_url = f"http://127.0.0.1:{self._web_port}"
        self._secret_key = os.urandom(32) if token_authentication else None
        self._process: subprocess.Popen[bytes] | None = None
        self._write_conf()
        atexit.register(self.close)

    def start(self) -> PulsarServer:
        """Returns once clients are served. From the main thread: the server dies with the thread that started it."""
        if self.alive:
            raise RuntimeError("this Pulsar runs already")
        for _ in range(_START_TRIES):
            with contextlib.suppress(_LockSpin):
                self._start_once()
                return self
            self.stop()
        raise RuntimeError(f"Pulsar spun in {_START_TRIES} starts. The log's end:\n{self.log_end()}")

    def stop(self) -> None:
        """As an operator would: SIGTERM, and it closes its topics."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as by a crash."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Killed, its data removed."""
        self.kill()
        atexit.unregister(self.close)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("this Pulsar does not run")
        return self._process.pid

    def token(self, subject: str) -> str:
        """A JSON web token (HS256, RFC 7519) that this server accepts."""
        if self._secret_key is None:
            raise RuntimeError("this Pulsar has no token authentication")
        signed = _base64url(b'{"alg":"HS256"}') + b"." + _base64url(json.dumps({"sub": subject}).encode())
        return (signed + b"." + _base64url(hmac.digest(self._secret_key, signed, hashlib.sha256))).decode()

    def admin(self, method: str, path: str, body: object = None) -> Any:
        """Pulsar's REST administration, as `admin("GET", "persistent/public/default")`; None for an empty answer."""
        headers = {"Content-Type": "application/json"}
        if self._secret_key:
            headers["Authorization"] = f"Bearer {self.token('admin')}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.admin_url}/admin/v2/{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def log_end(self, lines: int = 40) -> str:
        return "\n".join(self._logged().splitlines()[-lines:])

    def _logged(self) -> str:
        """Since the last start."""
        with self._log.open(errors="replace") as log:
            log.seek(self._log_start)
            return log.read()

    def _start_once(self) -> None:
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        data = ["--metadata-dir", str(self._folder / "metadata"), "--bookkeeper-dir", str(self._folder / "bookkeeper")]
        command = [str(self._home / "bin" / "pulsar"), "standalone", "-nfw", "-nss", *data]
        places = {"PULSAR_STANDALONE_CONF": str(self._conf), "PULSAR_LOG_DIR": str(self._folder / "logs")}
        self._process = start_bound(command, log=self._log, env=os.environ | _JVM | places)
        try:
            wait_until(self._ready, within_s=_START_DEADLINE_S, what="ready Pulsar", every_s=0.1)
        except (TimeoutError, RuntimeError) as error:
            self.kill()
            raise RuntimeError(f"Pulsar did not start ({error}). The log's end:\n{self.log_end()}") from error

    def _ready(self) -> bool:
        if not self.alive:
            raise RuntimeError("it ended by itself")
        if self._logged().count("was invalidated") > 20:
            raise _LockSpin
        try:
            return "public/default" in self.admin("GET", "namespaces/public")
        except (OSError, urllib.error.URLError, json.JSONDecodeError):
            return False

    def _end(self, sent: signal.Signals) -> None:
        if self._process is not None:
            end_group(self._process, sent, grace_s=30)
            self._process = None

    def _write_conf(self) -> None:
        self._conf = self._folder / "standalone.conf"
        settings = self._settings()
        original = (self._home / "conf" / "standalone.conf").read_text().splitlines()
        kept = [line for line in original if line.split("=", 1)[0].strip() not in settings]
        self._conf.write_text("\n".join(kept + [f"{name}={value}" for name, value in settings.items()]) + "\n")

    def _settings(self) -> dict[str, str]:
        settings = {
            "brokerServicePort": str(self._port),
            "webServicePort": str(self._web_port),
            "bindAddress": "127.0.0.1",
            "advertisedAddress": "127.0.0.1",
            "webSocketServiceEnabled": "false",
            "brokerShutdownTimeoutMs": "1000",  # else a stop takes 5 s for an idle broker
        }  # the bookie takes a free port by itself
        if sys.platform == "linux":
            settings["listeningInterface"] = "lo"  # else the bookie listens on every address
        return settings | (self._token_settings() if self._secret_key else {})

    def _token_settings(self) -> dict[str, str]:
        key_file = self._folder / "secret.key"
        key_file.write_bytes(self._secret_key or b"")
        return {
            "authenticationEnabled": "true",
            "authenticationProviders": "org.apache.pulsar.broker.authentication.AuthenticationProviderToken",
            "tokenSecretKey": key_file.as_uri(),
            "superUserRoles": "admin",
            "brokerClientAuthenticationPlugin": "org.apache.pulsar.client.impl.auth.AuthenticationToken",
            "brokerClientAuthenticationParameters": json.dumps({"token": self.token("admin")}),
        }


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
