"""Events on their way: the real client, over HTTP, to a server that checks what comes as kube-apiserver does."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from loguru import logger

import config
from reporting import apiserver, events
from reporting.apiserver import ApiServer, Away, Refused
from reporting.eventbody import Report, Subject, cause
from reporting.events import Delivery, Events
from tests.real.kubernetes_api import TOKEN, KubernetesApi, failure, serving
from tests.real.processes import REPOSITORY, free_port, wait_until

KEY = "sk-the-key-of-the-node-42"
SUBJECT = Subject("llama", "models", "node-a")
START_S = 1_795_000_400.0  # 200 s into a window of 10 minutes
SETTINGS = config.load(
    {"PULSAR_URL": "pulsar://h", "AIMODEL_NAME": "llama", "AIMODEL_NAMESPACE": "models", "API_KEY": KEY, "NODE_TYPE": "demo"}
)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    with serving(KubernetesApi(0)) as api:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
        yield api


@pytest.fixture
def reports() -> Iterator[Events]:
    reports = Events(SETTINGS)
    yield reports
    reports.close(0.0)


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []
    number = logger.add(lambda line: lines.append(str(line)), level="DEBUG", format="{level} {message}")
    yield lines
    logger.remove(number)


def soon(check: Callable[[], bool]) -> None:
    wait_until(check, within_s=30, what="what was reported")


def counts(api: KubernetesApi) -> list[int]:
    return [event["count"] for event in api.added()]


def refusals(api: KubernetesApi) -> set[int]:
    """Statuses that tell of a request against the rules."""
    return {asked.status for asked in api.asked} - {200, 201, 404, 409}


# by the thread


def test_a_report_becomes_an_event_and_its_repetition_a_count(api: KubernetesApi, reports: Events) -> None:
    reports.warn("AuthenticationError", f"the API refuses the key {KEY}: set API_KEY")
    soon(lambda: counts(api) == [1])
    reports.warn("AuthenticationError", f"the API refuses the key {KEY}: set API_KEY")
    reports.note("AuthenticationError", "the API takes the key again")
    soon(lambda: counts(api) == [2, 1])
    warning, normal = api.added()
    assert (warning["type"], normal["type"]) == ("Warning", "Normal")
    assert warning["message"] == f"the API refuses the key [redacted]: set API_KEY (node {socket.gethostname()})"
    assert warning["involvedObject"]["name"] == "llama" and warning["metadata"]["namespace"] == "models"
    assert [asked.method for asked in api.asked if asked.status == 201] == ["POST", "POST"]
    assert refusals(api) == set()


def test_what_is_reported_while_the_server_is_away_is_there_once_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reports: Events, log: list[str]
) -> None:
    monkeypatch.setattr(events, "LONGEST_DELAY_S", 1.0)
    away = KubernetesApi(free_port())
    monkeypatch.setenv("KUBECONFIG", str(away.kubeconfig(tmp_path)))
    for _ in range(5):
        reports.warn("MessageQueueConnectionError", "Pulsar is not to be reached: check PULSAR_URL")
    reports.note("GeneralError", "a backend works again")
    soon(lambda: any("does not take Events" in line for line in log))
    with serving(away):
        soon(lambda: sorted(counts(away)) == [1, 5])
    assert sum("does not take Events" in line for line in log) == 1
    assert sum("takes Events again" in line for line in log) == 1
    assert not any("Pulsar is not to be reached" in line for line in log), "whoever reports logs it, and nobody else"


def test_a_server_that_does_not_answer_holds_nobody_up(api: KubernetesApi, reports: Events) -> None:
    api.gate.clear()
    for number in range(1000):
        reports.warn("GeneralError", f"a backend ended {number} times")
    assert api.asked == [], "all of them came back before the server had said a word"
    api.gate.set()
    soon(lambda: counts(api) == [1000])


def test_missing_rights_are_said_once_with_what_to_change(
    api: KubernetesApi, reports: Events, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "FIRST_REFUSED_DELAY_S", 0.1)
    api.fault = lambda method: failure(403, "Forbidden", "events is forbidden: User system:serviceaccount:default cannot")
    reports.warn("GeneralError", "it broke")
    soon(lambda: len(api.asked) > 3)
    said = [line for line in log if "refuses Events" in line]
    assert len(said) == 1 and said[0].startswith("WARNING")
    assert "deploy/kubernetes/base/rbac.yaml" in said[0] and "namespace models" in said[0] and "events is forbidden" in said[0]
    api.fault = lambda method: None
    soon(lambda: counts(api) == [1])


def test_a_namespace_that_is_not_there_is_said(reports: Events, api: KubernetesApi, log: list[str]) -> None:
    api.namespaces = ("default",)
    reports.warn("GeneralError", "it broke")
    soon(lambda: any("AIMODEL_NAMESPACE" in line and "models" in line for line in log))


def test_a_token_that_was_replaced_is_read_anew(
    api: KubernetesApi, reports: Events, log: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "FIRST_REFUSED_DELAY_S", 0.1)
    api.kubeconfig(tmp_path, token="expired")
    reports.warn("GeneralError", "it broke")
    soon(lambda: any("credentials are not valid" in line for line in log))
    api.kubeconfig(tmp_path, token=TOKEN)
    soon(lambda: counts(api) == [1])


def test_a_report_that_the_server_cannot_take_holds_up_no_other(api: KubernetesApi, reports: Events, log: list[str]) -> None:
    unfit = iter([failure(422, "Invalid", "Event is invalid")])
    api.fault = lambda method: next(unfit, None) if method == "POST" else None
    reports.warn("GeneralError", "it broke")
    reports.warn("ConfigurationError", "MODEL_PATH is not there")
    soon(lambda: [event["reason"] for event in api.added()] == ["ConfigurationError"])
    assert sum("cannot become an Event" in line for line in log) == 1


def test_close_delivers_what_waits(api: KubernetesApi) -> None:
    reports = Events(SETTINGS)
    reports.warn("ConfigurationError", "MODEL_PATH is not there")
    reports.warn("GeneralError", "it broke")
    reports.close(60.0)
    assert counts(api) == [1, 1]
    reports.warn("GeneralError", "too late")
    assert len(api.added()) == 2


def test_close_cuts_a_long_rest_short(api: KubernetesApi, reports: Events, log: list[str]) -> None:
    api.fault = lambda method: failure(403, "Forbidden", "not yet")
    reports.warn("GeneralError", "it broke")
    soon(lambda: any("refuses Events" in line for line in log))
    api.fault = lambda method: None
    reports.close(60.0)
    assert counts(api) == [1]


def test_close_ends_while_the_server_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reports: Events, log: list[str]) -> None:
    monkeypatch.setenv("KUBECONFIG", str(KubernetesApi(free_port()).kubeconfig(tmp_path)))
    reports.warn("GeneralError", "it broke")
    soon(lambda: any("does not take Events" in line for line in log))
    reports.close(0.5)
    thread = reports._thread
    assert thread is not None
    thread.join(30)
    assert not thread.is_alive()


def test_without_a_server_anywhere_the_log_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reports: Events, log: list[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    for _ in range(3):
        reports.warn("GeneralError", "it broke")
    reports.close(30.0)
    assert [line for line in log if "it broke" in line] == []
    assert sum(line.startswith("INFO neither a cluster nor a kubeconfig") for line in log) == 1


# windows, restarts, lost replies


def delivery(now_s: Callable[[], float] = lambda: START_S, subject: Subject = SUBJECT) -> Delivery:
    return Delivery(ApiServer(), subject, now_s)


def report(message: str = "it broke", at_s: float = START_S) -> Report:
    return Report(cause("Warning", "GeneralError", message), message, at_s, at_s)


def test_after_ten_minutes_a_cause_is_added_anew_and_not_before(api: KubernetesApi) -> None:
    now_s = START_S
    api.clock = lambda: now_s
    node = delivery(lambda: now_s)
    for later_s in (0, 300, 599, 601, 900, 1200, 1202):
        now_s = START_S + later_s
        node.deliver(report(at_s=now_s))
    assert counts(api) == [3, 3, 1]
    first, second, _ = api.added()
    assert first["lastTimestamp"] == "2026-11-18T11:23:19Z" and second["firstTimestamp"] == "2026-11-18T11:23:21Z"
    assert refusals(api) == set()


def test_a_restart_counts_on_what_the_life_before_added(api: KubernetesApi) -> None:
    now_s = START_S
    api.clock = lambda: now_s
    for later_s in (0, 100, 399, 401, 599, 601, 700):  # 400: the next window begins
        now_s = START_S + later_s
        delivery(api.clock).deliver(report(at_s=now_s))
    assert counts(api) == [5, 2]
    assert refusals(api) == set()


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_request_whose_reply_was_lost_counts_once(api: KubernetesApi, lost: int) -> None:
    node = delivery()
    node.deliver(report())
    for _ in range(3):
        api.lose = lost
        _until_delivered(node, report())
    assert counts(api) == [4]
    assert sum(asked.lost for asked in api.asked) == 3 * lost


def test_an_addition_whose_reply_was_lost_counts_once_even_after_a_restart(api: KubernetesApi) -> None:
    api.lose, one = 1, report()
    with pytest.raises(Away):
        delivery().deliver(one)
    delivery().deliver(one)
    assert counts(api) == [1]


def test_two_that_share_a_name_lose_no_count(api: KubernetesApi) -> None:
    def work() -> None:
        node = delivery()
        for _ in range(20):
            _until_delivered(node, report())

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counts(api) == [40]


def test_an_event_that_the_server_forgot_is_added_anew(api: KubernetesApi) -> None:
    node = delivery()
    node.deliver(report())
    api.events.clear()
    node.deliver(report())
    assert counts(api) == [1] and len([asked for asked in api.asked if asked.status == 201]) == 2


def test_nodes_and_causes_do_not_share_events(api: KubernetesApi) -> None:
    delivery().deliver(report())
    delivery(subject=Subject("llama", "models", "node-b")).deliver(report())
    delivery().deliver(report("it burnt"))
    assert counts(api) == [1, 1, 1]


def test_a_server_without_time_says_how_long_to_wait(api: KubernetesApi) -> None:
    api.fault = lambda method: failure(503, "ServiceUnavailable", "the server is currently unable")
    with pytest.raises(Away, match="currently unable"):
        delivery().deliver(report())


def _until_delivered(node: Delivery, one: Report) -> None:
    for _ in range(10):
        try:
            return node.deliver(one)
        except Away:
            continue
    raise AssertionError("never delivered")


# the ways to a server


def test_a_pod_finds_its_server_token_and_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS, checked against the cluster's own authority; the files are those of a pod, elsewhere."""
    certificate, tls = _authority(tmp_path)
    with serving(KubernetesApi(0), tls) as api:
        _pod(tmp_path, api, certificate, monkeypatch)
        assert apiserver.place() and apiserver.own_namespace() == "models"
        Delivery(ApiServer(), Subject("llama", apiserver.own_namespace(), "node-a")).deliver(report(at_s=time.time()))
        assert counts(api) == [1]


def test_a_pod_without_a_service_account_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(KubernetesApi(0)) as api:
        _pod(tmp_path, api, tmp_path / "none", monkeypatch)
        with pytest.raises(Refused, match="certification file does not exist"):
            delivery().deliver(report())


def test_a_server_of_another_authority_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tls = _authority(tmp_path)
    (tmp_path / "other").mkdir()
    other, _ = _authority(tmp_path / "other")
    with serving(KubernetesApi(0), tls) as api:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path, scheme="https", ca=other)))
        with pytest.raises(Away, match=r"(?i)certificate"):
            delivery().deliver(report())
        assert api.asked == []


def test_a_kubeconfig_that_is_none_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kubeconfig").write_text("nothing of the kind")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with pytest.raises(Refused, match="the way to the API server cannot be read"):
        delivery().deliver(report())


def test_the_client_is_imported_only_where_there_is_something_to_report(api: KubernetesApi) -> None:
    program = """
import sys, config
from reporting.events import Events
without, reports = Events(config.load({})), Events(config.load({"PULSAR_URL": "pulsar://h", "AIMODEL_NAME": "llama"}))
without.warn("GeneralError", "it broke")
print("kubernetes" in sys.modules)
reports.warn("GeneralError", "it broke")
reports.close(60)
print("kubernetes" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.split() == ["False", "True"]
    assert [event["metadata"]["namespace"] for event in api.added()] == ["default"]


def test_the_role_holds_what_is_asked_and_no_more(api: KubernetesApi) -> None:
    node = delivery()
    node.deliver(report())
    node.deliver(report())
    verbs = {"POST": "create", "PATCH": "patch"}
    asked = {verbs[asked.method] for asked in api.asked}
    documents = list(yaml.safe_load_all((REPOSITORY / "deploy/kubernetes/base/rbac.yaml").read_text()))
    role, binding = documents[1], documents[2]
    assert role["rules"] == [{"apiGroups": [""], "resources": ["events"], "verbs": sorted(asked)}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == documents[0]["metadata"]["name"]


def _pod(folder: Path, api: KubernetesApi, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kubernetes.config import incluster_config

    (folder / "token").write_text(TOKEN)
    (folder / "namespace").write_text("models\n")
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.port))
    monkeypatch.setattr(apiserver, "SERVICE_ACCOUNT", folder)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(folder / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(certificate))


def _authority(folder: Path) -> tuple[Path, Callable[[ThreadingHTTPServer], None]]:
    """A self-signed certificate, and what makes a server speak TLS with it."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make a certificate with")
    certificate, key = folder / "ca.crt", folder / "ca.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=kubernetes"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)

    def tls(server: ThreadingHTTPServer) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)

    return certificate, tls
