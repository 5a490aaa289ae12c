"""The manifests for Kubernetes, against the schemas of its API (kubernetes-validate ships them), and what they promise
against what the node does. At a real API server: tests/acceptance/test_events_kubernetes.py."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

import config
from supervision.node import END_WITHIN_S
from tests.real.processes import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "kubernetes"
OVERLAYS = ("overlays/minikube", "overlays/remote", "overlays/local-gpu")
OLDEST, NEWEST = "1.29", "1.37"
VARIABLES = {config.variable_name(field) for field in dataclasses.fields(config.Settings)}
Manifest = dict[str, Any]

TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
POLICIES = {
    "type": "object", "additionalProperties": False,
    "properties": {"stabilizationWindowSeconds": COUNT, "policies": {"type": "array"}},
}  # fmt: skip
# keda.sh/v1alpha1, what is used of it; its trigger's fields: https://keda.sh/docs/latest/scalers/pulsar
SCALED_OBJECT = {
    "type": "object", "additionalProperties": False, "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "keda.sh/v1alpha1"}, "kind": {"const": "ScaledObject"}, "metadata": {"type": "object"},
        "spec": {
            "type": "object", "additionalProperties": False, "required": ["scaleTargetRef", "triggers"],
            "properties": {
                "scaleTargetRef": {"type": "object", "additionalProperties": False, "properties": {"name": TEXT}, "required": ["name"]},
                "pollingInterval": COUNT, "cooldownPeriod": COUNT, "minReplicaCount": COUNT, "maxReplicaCount": COUNT,
                "advanced": {"type": "object", "additionalProperties": False, "properties": {
                    "horizontalPodAutoscalerConfig": {"type": "object", "additionalProperties": False, "properties": {
                        "behavior": {"type": "object", "additionalProperties": False, "properties": {
                            "scaleUp": POLICIES, "scaleDown": POLICIES}}}}}},
                "triggers": {"type": "array", "items": {
                    "type": "object", "additionalProperties": False, "required": ["type", "metadata"],
                    "properties": {"type": {"const": "pulsar"}, "metadata": {
                        "type": "object", "additionalProperties": False, "required": ["adminURL", "topic", "subscription"],
                        "properties": dict.fromkeys(("adminURL", "topic", "subscription", "isPartitionedTopic", "msgBacklogThreshold",
                                                     "activationMsgBacklogThreshold"), TEXT)}}}},
            },
        },
    },
}  # fmt: skip


def wrong_with(manifest: Manifest, version: str) -> str:
    """"" for a manifest that this version of Kubernetes takes."""
    try:
        if manifest["kind"] == "ScaledObject":
            jsonschema.validate(manifest, SCALED_OBJECT)
        else:
            kubernetes_validate.validate(manifest, version, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.SchemaNotFoundError) as mistake:
        return str(mistake)
    return ""


def rendered(folder: str) -> list[Manifest]:
    if not shutil.which("kubectl"):
        pytest.skip("there is no kubectl, whose kustomize builds them")
    ran = subprocess.run(["kubectl", "kustomize", str(FOLDER / folder)], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    return list(yaml.safe_load_all(ran.stdout))


def the(kind: str, manifests: list[Manifest], start: str = "") -> Manifest:
    (found,) = (m for m in manifests if m["kind"] == kind and m["metadata"]["name"].startswith(start))
    return found


def environment(manifests: list[Manifest]) -> dict[str, str]:
    """What the first container of the Deployment is given. Every ConfigMap it names has to be there."""
    container = the("Deployment", manifests)["spec"]["template"]["spec"]["containers"][0]
    found: dict[str, str] = {}
    for source in container["envFrom"]:
        (data,) = (m["data"] for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"] == source["configMapRef"]["name"])
        found |= data
    return found | {variable["name"]: variable.get("value", "10.0.0.9") for variable in container["env"]}


@pytest.mark.parametrize("folder", [*OVERLAYS, "base", "gateway", "pulsar"])
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_takes_every_manifest(folder: str, version: str) -> None:
    assert [wrong for manifest in rendered(folder) if (wrong := wrong_with(manifest, version))] == []


@pytest.mark.parametrize("path", [p for p in FOLDER.rglob("*.yaml") if p.parent.name in ("base", "gateway", "pulsar", "shared")], ids=str)
def test_and_every_file_as_it_is(path: Path) -> None:
    for manifest in yaml.safe_load_all(path.read_text()):
        if manifest["kind"] not in ("Kustomization", "Component"):
            assert wrong_with(manifest, NEWEST) == ""


def test_a_mistake_would_be_found() -> None:
    node = yaml.safe_load((FOLDER / "base" / "node.yaml").read_text())
    node["spec"]["template"]["spec"]["terminationGracePeriod"] = 180
    assert "terminationGracePeriod" in wrong_with(node, NEWEST)
    scaled = yaml.safe_load((FOLDER / "components" / "keda" / "scaledobject.yaml").read_text())
    assert wrong_with(scaled, NEWEST) == ""
    scaled["spec"]["triggers"][0]["metadata"]["msgBacklogThreshold"] = 128
    assert "128 is not of type 'string'" in wrong_with(scaled, NEWEST)


@pytest.mark.parametrize("folder", OVERLAYS)
def test_the_node_takes_the_environment_that_it_is_given(folder: str, tmp_path: Path) -> None:
    given = environment(rendered(folder))
    if "MODEL_PATH" in given:
        (tmp_path / "model.gguf").touch()
        given["MODEL_PATH"] = str(tmp_path / "model.gguf")
    assert given.keys() <= VARIABLES
    settings = config.load({**given, "KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert (settings.status_host, settings.log_format, settings.host) == ("0.0.0.0", "json", "127.0.0.1")


def test_the_gateways_nodes_answer_to_the_pod_that_waits() -> None:
    manifests = rendered("gateway")
    given = environment(manifests)
    answer_url = given.pop("ANSWER_URL").replace("$(POD_IP)", given.pop("POD_IP"))
    settings = config.load({**given, "ANSWER_URL": answer_url}, gateway_alone=True)
    assert (settings.answer_url, settings.host, settings.port) == ("http://10.0.0.9:8081", "0.0.0.0", 8081)
    (port,) = the("Service", manifests)["spec"]["ports"]
    assert port["targetPort"] in [p["name"] for p in the("Deployment", manifests)["spec"]["template"]["spec"]["containers"][0]["ports"]]


@pytest.mark.parametrize("folder", [*OVERLAYS, "gateway"])
def test_what_they_promise_is_what_the_node_does(folder: str) -> None:
    manifests = rendered(folder)
    deployment = the("Deployment", manifests)
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] >= float(environment(manifests)["DRAIN_TIMEOUT_S"]) + END_WITHIN_S
    assert container["securityContext"]["readOnlyRootFilesystem"] and pod["securityContext"]["runAsNonRoot"]
    assert {"livenessProbe", "readinessProbe", "startupProbe"} <= container.keys()
    (secret,) = (volume["secret"] for volume in pod["volumes"] if "secret" in volume)
    name = deployment["metadata"]["name"].removeprefix("node").removeprefix("-")
    assert secret["optional"] and secret["secretName"] == "-".join(filter(None, ["workernode", name]))
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (deployment["spec"]["selector"], the("PodDisruptionBudget", manifests)["spec"]["selector"]):
        assert selector["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize("folder", ["overlays/remote", "overlays/local-gpu"])
def test_keda_looks_at_what_the_node_receives(folder: str) -> None:
    from messaging.topics import request_topic, subscription

    manifests = rendered(folder)
    given, scaled = environment(manifests), the("ScaledObject", manifests)["spec"]
    (trigger,) = scaled["triggers"]
    assert scaled["scaleTargetRef"]["name"] == the("Deployment", manifests)["metadata"]["name"]
    assert trigger["metadata"]["topic"] == f"persistent://public/default/{request_topic(given['MODEL_NAME'])}"
    assert trigger["metadata"]["subscription"] == subscription(given["MODEL_NAME"])
    assert trigger["metadata"]["msgBacklogThreshold"] == given["MAX_PROCESS_NUM"]
    assert trigger["metadata"]["adminURL"] == given["PULSAR_ADMIN_URL"]


def test_laptops_compose_file_names_what_there_is() -> None:
    services = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]
    assert services.keys() == {"pulsar", "node", "gateway"}
    assert services["pulsar"]["image"] == "apachepulsar/pulsar:4.0.6"
    for name in ("node", "gateway"):
        assert services[name]["environment"].keys() <= VARIABLES
    assert services["gateway"]["ports"] == ["127.0.0.1:8081:8081"]
