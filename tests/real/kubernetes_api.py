"""An HTTP server that takes and refuses Events as kube-apiserver does (its rules: pkg/apis/core/validation/events.go,
pkg/registry/core/event, apimachinery's names and times), with the failures that a test asks for."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "token-of-the-service-account"
PATH = re.compile(r"/api/v1/namespaces/([^/?]+)/events(?:/([^/?]+))?")
MERGE_PATCHES = ("application/merge-patch+json", "application/strategic-merge-patch+json")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
# Go's time.RFC3339, with which metav1.Time is read
RFC3339 = re.compile(r"\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-6]\d(\.\d+)?(Z|[+-][0-2]\d:[0-5]\d)")
ANNOTATION = re.compile(r"([a-z0-9][-a-z0-9.]*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
FIELDS: dict[str, type | tuple[type, ...]] = {
    "apiVersion": str, "kind": str, "metadata": dict, "involvedObject": dict, "type": str, "reason": str, "message": str,
    "firstTimestamp": str, "lastTimestamp": str, "count": int, "source": dict, "reportingComponent": str,
    "reportingInstance": str, "eventTime": (str, type(None)),
}  # fmt: skip
INSIDE = {
    "metadata": {"name", "namespace", "annotations", "labels", "resourceVersion", "uid", "creationTimestamp"},
    "involvedObject": {"apiVersion", "kind", "name", "namespace", "uid", "resourceVersion", "fieldPath"},
    "source": {"component", "host"},
}
Reply = tuple[int, dict[str, Any]]


@dataclass
class Asked:
    """A request that came: what the server answered, and how (`lost`: not at all)."""

    method: str
    name: str
    body: dict[str, Any]
    status: int
    reason: str = ""
    lost: bool = False


@dataclass
class KubernetesApi:
    """`fault`: what to do with a request instead of serving it (a Reply), asked for each; None: serve it. `lose`: how many
    of the next replies to swallow after the request was carried out. `gate`: requests wait until it is set."""

    port: int
    namespaces: tuple[str, ...] = ("default", "models")
    clock: Callable[[], float] = time.time
    fault: Callable[[str], Reply | None] = lambda method: None
    lose: int = 0
    gate: threading.Event = field(default_factory=lambda: _set(threading.Event()))
    events: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    version: int = 100
    lock: threading.Lock = field(default_factory=threading.Lock)

    def kubeconfig(self, folder: Path, *, token: str = TOKEN, scheme: str = "http", ca: Path | None = None) -> Path:
        cluster: dict[str, str] = {"server": f"{scheme}://127.0.0.1:{self.port}"}
        if ca is not None:
            cluster["certificate-authority"] = str(ca)
        path = folder / "kubeconfig"
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }  # fmt: skip
        path.write_text(json.dumps(content))  # JSON is YAML
        return path

    def added(self) -> list[dict[str, Any]]:
        """The Events, oldest first."""
        with self.lock:
            return list(self.events.values())

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> Reply:
        if headers.get("Authorization", "").lower() != f"bearer {TOKEN}":
            return failure(401, "Unauthorized", "Unauthorized")
        found = PATH.fullmatch(path)
        if found is None:
            return failure(404, "NotFound", "the server could not find the requested resource")
        namespace, name = found[1], found[2]
        content_type = headers.get("Content-Type", "").partition(";")[0]
        if namespace not in self.namespaces and method == "POST":
            return failure(404, "NotFound", f'namespaces "{namespace}" not found')
        try:
            given = json.loads(body)
        except ValueError as error:
            return failure(400, "BadRequest", str(error))
        if method == "POST" and name is None:
            return self.create(namespace, given, content_type)
        if method == "PATCH" and name is not None:
            return self.patch(namespace, name, given, content_type)
        return failure(403, "Forbidden", f"events is forbidden: cannot {method}")  # what the Role does not hold

    def create(self, namespace: str, event: dict[str, Any], content_type: str) -> Reply:
        if content_type not in ("application/json", ""):  # without one it is taken for JSON
            return failure(415, "UnsupportedMediaType", f"the body is {content_type!r}")
        if (wrong := check(namespace, event)) is not None:
            return wrong
        if "resourceVersion" in event["metadata"]:
            return failure(400, "BadRequest", "resourceVersion should not be set on objects to be created")
        key = (namespace, event["metadata"]["name"])
        if key in self.events:
            return failure(409, "AlreadyExists", f'events "{key[1]}" already exists')
        created = datetime.fromtimestamp(int(self.clock()), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        event["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": created}
        return 201, self.store(key, event)

    def patch(self, namespace: str, name: str, change: dict[str, Any], content_type: str) -> Reply:
        if content_type not in MERGE_PATCHES:
            return failure(415, "UnsupportedMediaType", f"the body is {content_type!r}")
        before = self.events.get((namespace, name))
        if before is None:
            return failure(404, "NotFound", f'events "{name}" not found')
        after = merged(before, change)
        if after["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"]:
            return failure(409, "Conflict", f'Operation cannot be fulfilled on events "{name}": the object has been modified')
        if after["metadata"]["name"] != name:
            return failure(400, "BadRequest", "the name of the object does not match the name on the URL")
        if (wrong := check(namespace, after)) is not None:
            return wrong
        return 200, before if after == before else self.store((namespace, name), after)

    def store(self, key: tuple[str, str], event: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        event["metadata"]["resourceVersion"] = str(self.version)
        for name in ("firstTimestamp", "lastTimestamp"):
            event[name] = datetime.fromisoformat(event[name]).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.events[key] = event
        return event


def check(namespace: str, event: dict[str, Any]) -> Reply | None:
    """What is wrong with an Event, or None."""
    if wrong := _badly_formed(event):
        return failure(400, "BadRequest", wrong)
    metadata, involved = event["metadata"], event["involvedObject"]
    if metadata.get("namespace", namespace) != namespace:
        return failure(400, "BadRequest", "the namespace of the provided object does not match the namespace sent on the request")
    if wrong := _invalid(namespace, event, metadata, involved):
        return failure(422, "Invalid", wrong)
    return None


def _badly_formed(event: dict[str, Any]) -> str:
    if event.get("apiVersion") != "v1" or event.get("kind") != "Event":
        return "apiVersion and kind should be v1 and Event"
    for name, value in event.items():
        if name not in FIELDS or not isinstance(value, FIELDS[name]) or isinstance(value, bool):
            return f"strict decoding error: field {name!r} is unknown or of the wrong type"
        if isinstance(value, dict) and (unknown := value.keys() - INSIDE[name]):
            return f"strict decoding error: unknown field in {name}: {unknown}"
    for name in ("firstTimestamp", "lastTimestamp"):
        if not RFC3339.fullmatch(event.get(name, "")):
            return f"{name}: {event.get(name)!r} is not RFC 3339"
    return "" if -(2**31) <= event.get("count", 0) < 2**31 else "count: no int32"


def _invalid(namespace: str, event: dict[str, Any], metadata: dict[str, Any], involved: dict[str, Any]) -> str:
    name = metadata.get("name", "")
    if len(name) > 253 or not SUBDOMAIN.fullmatch(name):
        return f"metadata.name: Invalid value: {name!r}: should be a DNS subdomain"
    if not LABEL.fullmatch(namespace):
        return f"metadata.namespace: Invalid value: {namespace!r}: should be a DNS label"
    if involved.get("namespace", "") != namespace:
        return "involvedObject.namespace: does not match event.namespace"
    if any(not ANNOTATION.fullmatch(key) or not isinstance(value, str) for key, value in metadata.get("annotations", {}).items()):
        return "metadata.annotations: Invalid value"
    # What the API's reference asks for beyond what core/v1 enforces:
    if event.get("type") not in ("Normal", "Warning") or not re.fullmatch(r"[A-Z][A-Za-z]{0,127}", event.get("reason", "")):
        return "type should be Normal or Warning, reason in CamelCase"
    if not 0 < len(event.get("message", "").encode()) <= 1024 or len(event.get("reportingInstance", "")) > 128:
        return "message should have 1024 bytes at most, reportingInstance 128"
    return "" if event.get("count", 0) >= 1 and event.get("source", {}).get("component") else "count and source.component should be there"


def merged(target: Any, change: Any) -> Any:
    """RFC 7386."""
    if not isinstance(change, dict):
        return change
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def _set(event: threading.Event) -> threading.Event:
    event.set()
    return event


def failure(status: int, reason: str, message: str) -> Reply:
    return status, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": status}


def _handler(api: KubernetesApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            api.gate.wait(60)
            with api.lock:
                status, reply = api.fault(self.command) or api.answer(self.command, self.path, self.headers, body)
                lost = status < 300 and api.lose > 0
                api.lose -= lost
                name = self.path.partition("?")[0].rpartition("/")[2]
                api.asked.append(Asked(self.command, name, json.loads(body), status, reply.get("reason", ""), lost))
            if lost:
                self.close_connection = True
                return
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_PATCH = do_GET = do_PUT = do_DELETE = _serve

        def log_message(self, format: str, *args: Any) -> None:
            return

    return Handler


@contextlib.contextmanager
def serving(api: KubernetesApi, tls: Callable[[ThreadingHTTPServer], None] = lambda server: None) -> Iterator[KubernetesApi]:
    """Serve on api.port (0: a free one, which is then written there) until the block is left."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    server = Server(("127.0.0.1", api.port), _handler(api))
    tls(server)
    api.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
