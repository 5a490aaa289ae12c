"""At a real kube-apiserver with a real etcd: Events under the rights of deploy/kubernetes/base/rbac.yaml alone, and all
manifests.

Runs where both binaries are found, in PATH or by KUBE_APISERVER and ETCD. etcd is Debian's etcd-server; kube-apiserver is
`k8s.io/kubernetes/cmd/kube-apiserver/app` built with Go, each staging module replaced by its v0 version.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from reporting.apiserver import ApiServer, Refused
from reporting.eventbody import Report, Subject, cause
from reporting.events import Delivery
from tests.real.processes import REPOSITORY, end_group, free_port, start_bound, wait_until

ADMIN, NODE = "token-of-the-admin", "token-of-the-node"
SUBJECT = Subject("llama", "models", "node-a")


class Cluster:
    """An API server, with a namespace `models`."""

    def __init__(self, folder: Path, api_port: int) -> None:
        from kubernetes import client

        self.folder, self.port = folder, api_port
        settings = client.Configuration(host=f"https://127.0.0.1:{api_port}", ssl_ca_cert=str(folder / "certs/apiserver.crt"))
        settings.api_key["BearerToken"] = f"Bearer {ADMIN}"
        self.admin = client.ApiClient(settings)

    def kubeconfig(self, token: str = NODE) -> Path:
        cluster = {"server": f"https://127.0.0.1:{self.port}", "certificate-authority": str(self.folder / "certs/apiserver.crt")}
        path = self.folder / "kubeconfig"
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}], "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }  # fmt: skip
        path.write_text(json.dumps(content))
        return path

    def events(self) -> list[Any]:
        from kubernetes import client

        found = client.CoreV1Api(self.admin).list_namespaced_event("models").items
        return sorted(found, key=lambda event: (event.first_timestamp, event.metadata.name))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    etcd, apiserver = (_binary(name) for name in ("etcd", "kube-apiserver"))
    folder, etcd_port, api_port = tmp_path_factory.mktemp("cluster"), free_port(), free_port()
    etcd_process = start_bound(_etcd(etcd, folder, etcd_port), log=folder / "etcd.log")
    try:
        wait_until(lambda: _answers(f"http://127.0.0.1:{etcd_port}/health"), within_s=60, what="etcd")
        api_process = start_bound(_apiserver(apiserver, folder, etcd_port, api_port), log=folder / "apiserver.log")
        try:
            yield _ready(folder, api_port)
        finally:
            end_group(api_process)
    finally:
        end_group(etcd_process)


def test_the_rights_are_enough_and_the_counts_right(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    from kubernetes import utils

    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig()))
    start_s = now_s = time.time()
    node = Delivery(ApiServer(), SUBJECT, lambda: now_s)
    with pytest.raises(Refused, match="forbidden"):
        node.deliver(_report(now_s))
    utils.create_from_yaml(cluster.admin, str(REPOSITORY / "deploy/kubernetes/base/rbac.yaml"), namespace="models")
    wait_until(lambda: _delivered(node, _report(now_s)), within_s=30, what="the rights")
    node.deliver(_report(now_s))
    Delivery(ApiServer(), SUBJECT, lambda: now_s).deliver(_report(now_s))  # a restart
    other = Delivery(ApiServer(), SUBJECT, lambda: now_s)  # another of the same name, whose version is newer than the first one's
    other.deliver(_report(now_s))
    node.deliver(_report(now_s))
    assert [event.count for event in cluster.events()] == [5]
    now_s = start_s + 601
    node.deliver(_report(now_s))
    first, second = cluster.events()
    assert (first.count, second.count) == (5, 1)
    assert (second.type, second.reason, second.involved_object.kind) == ("Warning", "GeneralError", "AIModel")
    assert second.message == "it broke: ü (node node-a)"


def test_a_report_that_was_carried_out_is_not_counted_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig()))
    subject, one = Subject("llama", "models", "node-b"), _report(time.time())
    node, before = Delivery(ApiServer(), subject), len(cluster.events())
    node.deliver(one)
    node.deliver(one)
    Delivery(ApiServer(), subject).deliver(one)
    assert len(cluster.events()) == before + 1
    assert [event.count for event in cluster.events() if event.reporting_instance == "node-b"] == [1]


@pytest.mark.parametrize("folder", ["overlays/minikube", "overlays/remote", "overlays/local-gpu", "gateway", "pulsar"])
def test_the_manifests_are_taken_and_their_pods_admitted(cluster: Cluster, folder: str) -> None:
    """Applied, and a pod made of the Deployment's template: the namespace admits only what keeps to the restricted standard.
    Without what is KEDA's, unless its definitions are there."""
    if not shutil.which("kubectl"):
        pytest.skip("there is no kubectl")
    kustomized = _kubectl(cluster, "kustomize", str(REPOSITORY / "deploy/kubernetes" / folder))
    manifests = [m for m in yaml.safe_load_all(kustomized) if m["kind"] != "ScaledObject" or os.environ.get("KEDA_CRDS")]
    if crds := os.environ.get("KEDA_CRDS"):
        _kubectl(cluster, "apply", "--server-side", "-f", crds)
        _kubectl(cluster, "wait", "--for=condition=Established", "--timeout=30s", "crd/scaledobjects.keda.sh")
    said = _kubectl(cluster, "apply", "--server-side", "--validate=strict", "-f", "-", given=yaml.safe_dump_all(manifests))
    assert len(said.splitlines()) == len(manifests)
    (deployment,) = (m for m in manifests if m["kind"] == "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "namespace": "workernode"}, "spec": spec}
    _kubectl(cluster, "create", "--dry-run=server", "--validate=strict", "-f", "-", given=yaml.safe_dump(pod))
    spec["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    with pytest.raises(AssertionError, match="violates PodSecurity"):
        _kubectl(cluster, "create", "--dry-run=server", "-f", "-", given=yaml.safe_dump(pod))


def _kubectl(cluster: Cluster, *arguments: str, given: str | None = None) -> str:
    command = ["kubectl", "--kubeconfig", str(cluster.kubeconfig(ADMIN)), *arguments]
    ran = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def _report(at_s: float) -> Report:
    return Report(cause("Warning", "GeneralError", "it broke: ü"), "it broke: ü", at_s, at_s)


def _delivered(node: Delivery, report: Report) -> bool:
    try:
        node.deliver(report)
    except Refused:  # the authoriser learns of a new role a moment later
        return False
    return True


def _binary(name: str) -> str:
    path = os.environ.get(name.replace("-", "_").upper()) or shutil.which(name)
    if not path:
        pytest.skip(f"there is no {name}")
    return path


def _etcd(binary: str, folder: Path, port: int) -> list[str]:
    here, peers = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{free_port()}"
    return [
        binary, "--data-dir", str(folder / "etcd"), "--listen-client-urls", here, "--advertise-client-urls", here,
        "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", f"default={peers}",
    ]  # fmt: skip


def _apiserver(binary: str, folder: Path, etcd_port: int, port: int) -> list[str]:
    key, tokens = folder / "accounts.key", folder / "tokens.csv"
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True, timeout=60)
    tokens.write_text(f'{ADMIN},admin,1,"system:masters"\n{NODE},system:serviceaccount:models:workernode,2,"system:serviceaccounts"\n')
    flags = {
        "etcd-servers": f"http://127.0.0.1:{etcd_port}", "bind-address": "127.0.0.1", "secure-port": port,
        "advertise-address": "10.0.0.250", "endpoint-reconciler-type": "none", "service-cluster-ip-range": "10.1.0.0/24",
        "cert-dir": folder / "certs", "token-auth-file": tokens, "authorization-mode": "RBAC",
        "service-account-key-file": key, "service-account-signing-key-file": key,
        "service-account-issuer": "https://kubernetes.default.svc", "disable-admission-plugins": "ServiceAccount",
    }  # fmt: skip
    return [binary, *(f"--{name}={value}" for name, value in flags.items())]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _ready(folder: Path, port: int) -> Cluster:
    from kubernetes import client

    wait_until((folder / "certs/apiserver.crt").exists, within_s=60, what="the API server's certificate")
    cluster = Cluster(folder, port)

    def has_namespace() -> bool:
        try:
            client.CoreV1Api(cluster.admin).create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name="models")))
        except client.ApiException as error:
            return bool(error.status == 409)
        except Exception:  # not listening yet
            return False
        return True

    wait_until(has_namespace, within_s=90, what="API server that answers", every_s=0.5)
    return cluster
