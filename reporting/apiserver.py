"""Kubernetes' API server, as far as Events need it: create and patch, by the `kubernetes` package.

That package takes most of a second and tens of MiB to import: it is imported by the thread that reports, once there is
something to report.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reporting.eventbody import LAST_REPORT

if TYPE_CHECKING:
    from kubernetes import client

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUTS_S = (5.0, 15.0)  # to connect, to hear something
_UNFIT = (400, 405, 413, 415, 422)
_LONGEST_WAIT_S = 300.0


class Away(Exception):
    """The server is not to be reached, or has no time. `wait_s`: as it asked, else 0."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Refused(Exception):
    """Somebody has to change something before this works. `status`: as HTTP has it; 0: it did not come so far."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Unfit(Exception):
    """It is this one request that is wrong: the same would be refused for ever."""


class Conflict(Exception):
    """The name is taken, or another writer was faster."""


class Missing(Exception):
    """There is no such thing (any more)."""


@dataclass(frozen=True)
class Stored:
    """An Event as the server has it. `created_s`: UTC; `mark`: of the report that it counted last."""

    name: str
    count: int
    version: str
    mark: str
    created_s: float


class ApiServer:
    """Connects when it is first needed. Every method raises the exceptions above and no others."""

    def __init__(self) -> None:
        self._api: client.CoreV1Api | None = None

    def create(self, namespace: str, body: dict[str, Any]) -> Stored:
        with self._reported() as api:
            from kubernetes.client import CoreV1Event

            event, as_json = CoreV1Event.model_validate(body), {"Content-Type": "application/json"}  # the package would send none
            return _stored(api.create_namespaced_event(namespace, event, _headers=as_json, _request_timeout=TIMEOUTS_S))

    def patch(self, namespace: str, name: str, body: dict[str, Any]) -> Stored:
        """An empty body changes nothing and brings the Event as it is: the way to read it without the right to."""
        with self._reported() as api:
            merge = "application/merge-patch+json"
            return _stored(api.patch_namespaced_event(name, namespace, body, _content_type=merge, _request_timeout=TIMEOUTS_S))

    @contextmanager
    def _reported(self) -> Iterator[client.CoreV1Api]:
        """What goes wrong in there, as one of ours."""
        try:
            from kubernetes.client import ApiException
            from urllib3.exceptions import HTTPError
        except ImportError as error:
            raise Refused(f"{error}: pip install -r requirement.txt") from error
        try:
            self._api = self._api or _connect()
            yield self._api
        except ApiException as error:
            if error.status == 401:  # a token that was replaced is read anew
                self._api = None
            raise _translated(error) from error
        except (HTTPError, OSError) as error:
            raise Away(f"{type(error).__name__}: {error}") from error
        except ValueError as error:  # a body, or an answer, that is none: the next report may fare better
            raise Unfit(f"{type(error).__name__}: {error}") from error


def place() -> str:
    """Which API server there is, in words; "" where there is none. As kubectl looks for it."""
    paths = [Path(path) for path in os.environ.get("KUBECONFIG", "").split(os.pathsep) if path]
    if paths:
        return f"KUBECONFIG={os.environ['KUBECONFIG']}" if any(map(Path.exists, paths)) else ""
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "the cluster's"
    default = Path("~/.kube/config").expanduser()
    return str(default) if default.exists() else ""


def own_namespace() -> str:
    """The pod's own, as its service account says; else `default`."""
    try:
        return (SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip() or "default"
    except (OSError, UnicodeDecodeError):
        return "default"


def _connect() -> client.CoreV1Api:
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
            config.load_incluster_config(client_configuration=configuration)
        else:
            path = os.environ.get("KUBECONFIG") or "~/.kube/config"
            config.load_kube_config(path, client_configuration=configuration, persist_config=False)
    except Exception as error:  # a broken file, a program that should fetch a token: all kinds come out of there
        raise Refused(f"the way to the API server cannot be read: {error}") from error
    configuration.retries = False  # when and how often is ours to say
    return client.CoreV1Api(client.ApiClient(configuration))


def _translated(error: client.ApiException) -> Exception:
    status, words = error.status or 0, f"{error.status} {error.reason}: {str(error.body or '')[:500]}".strip()
    if status == 409:
        return Conflict(words)
    if status == 404:
        return Missing(words)
    if status in (401, 403):
        return Refused(words, status)
    if status in _UNFIT:
        return Unfit(words)
    return Away(words, _asked_wait_s(error))


def _asked_wait_s(error: client.ApiException) -> float:
    after = str((error.headers or {}).get("Retry-After", ""))
    return min(float(after), _LONGEST_WAIT_S) if after.isascii() and after.isdigit() else 0.0


def _stored(event: client.CoreV1Event) -> Stored:
    metadata = event.metadata
    created = metadata.creation_timestamp
    return Stored(
        metadata.name or "", event.count or 0, metadata.resource_version or "",
        (metadata.annotations or {}).get(LAST_REPORT, ""), created.timestamp() if created else 0.0,
    )  # fmt: skip
