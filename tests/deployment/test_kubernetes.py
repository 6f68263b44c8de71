"""The manifests: valid for the newest schema and for an older one, confined, and wired to each other as meant."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # ships no types
import pytest
import yaml

from experiment.config import load
from tests.deployment.files import KUBERNETES, documented, manifest, manifests, pod_of, ran

OLDEST = "1.29"
"""The oldest Kubernetes whose schema they are held to; the pod's index as a label came with 1.28."""

PODS = [("Deployment", "breakwater-server"), ("StatefulSet", "breakwater-client")]
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, but no cluster")


def kubectl(*words: str | Path) -> list[dict[str, Any]]:
    ended = ran("kubectl", *words)
    assert ended.returncode == 0, ended.stderr
    return list(yaml.safe_load_all(ended.stdout))


def containers(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from spec.get("initContainers", [])
    yield from spec["containers"]


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_they_obey_the_schema(version: str) -> None:
    kinds = []
    for entry in manifests():
        kubernetes_validate.validate(entry, version, strict=True)
        kinds.append(entry["kind"])
    assert sorted(set(kinds)) == [
        *("Deployment", "Namespace", "NetworkPolicy"),
        *("PersistentVolumeClaim", "Service", "StatefulSet"),
    ]


@needs_kubectl
@pytest.mark.parametrize("part", [".", "server", "clients"])
def test_kustomize_renders_what_is_written(part: str) -> None:
    rendered = kubectl("kustomize", KUBERNETES / part)
    configs = {e["metadata"]["name"] for e in rendered if e["kind"] == "ConfigMap"}
    written = {(e["kind"], e["metadata"]["name"]): e for e in manifests(KUBERNETES / part)}
    for entry in rendered:
        kubernetes_validate.validate(entry, kubernetes_validate.latest_version(), strict=True)
        assert entry["kind"] == "Namespace" or entry["metadata"].pop("namespace") == "breakwater"
        if entry["kind"] == "ConfigMap":
            continue
        # What kustomize is to put in: the image's tag, and the name of the ConfigMap.
        text = yaml.safe_dump(entry)
        if part == ".":
            text, count = re.subn(r"image: breakwater:\d+\.\d+\.\d+-base\n", "image: breakwater\n", text)
            assert count == len(list(containers(entry["spec"]["template"]["spec"]))) if "image:" in text else count == 0
        for name in configs:
            text = text.replace(name, "breakwater-experiment")
        assert yaml.safe_load(text) == written.pop((entry["kind"], entry["metadata"]["name"]))
    assert not written
    assert len(configs) == (part != "clients")


@needs_kubectl
def test_a_partys_folder_is_a_secret_as_it_stands(tmp_path: Path) -> None:
    (line,) = [line for line in documented("Kubernetes") if "secret generic breakwater-server" in line]
    (tmp_path / "certs" / "server").mkdir(parents=True)
    for name in ("ca.crt", "tls.crt", "tls.key"):
        (tmp_path / "certs" / "server" / name).write_text(name, encoding="utf-8")
    words = shlex.split(line.replace("=certs/", f"={tmp_path}/certs/"))[1:]
    (secret,) = kubectl(*words, "--dry-run=client", "--output=yaml")
    kubernetes_validate.validate(secret, kubernetes_validate.latest_version(), strict=True)
    assert sorted(secret["data"]) == ["ca.crt", "tls.crt", "tls.key"]
    (volume,) = [v for v in pod_of(*PODS[0])["volumes"] if v["name"] == "tls"]
    assert volume["secret"]["secretName"] == secret["metadata"]["name"]


@pytest.mark.parametrize(("kind", "name"), PODS)
def test_pods_obey_the_restricted_standard_and_more(kind: str, name: str) -> None:
    spec = pod_of(kind, name)
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    pod = spec["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert (pod["runAsUser"], pod["fsGroup"]) == (10001, 10001)  # the image's
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    kinds = {key for volume in spec["volumes"] for key in volume if key != "name"}
    assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
    for container in containers(spec):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert set(container["resources"]) == {"requests", "limits"}
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert "/tmp" in mounts  # noqa: S108  # a path in the container
        assert {volume["name"] for volume in spec["volumes"]} >= {mount["name"] for mount in mounts.values()}


def test_the_namespace_enforces_that_standard() -> None:
    labels = manifest("Namespace", "breakwater")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize(("kind", "name"), PODS)
def test_selectors_fit_the_pods_they_mean(kind: str, name: str) -> None:
    labels = manifest(kind, name)["spec"]["template"]["metadata"]["labels"]
    assert manifest(kind, name)["spec"]["selector"]["matchLabels"] == labels
    assert manifest("Service", name)["spec"]["selector"] == labels
    assert manifest("NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"] == labels


def test_policies_let_clients_reach_the_server_and_nothing_else() -> None:
    server, client = (manifest("NetworkPolicy", name)["spec"] for _, name in PODS)
    labels = {name: manifest(kind, name)["spec"]["template"]["metadata"]["labels"] for kind, name in PODS}
    link = [{"protocol": "TCP", "port": 9090}]
    assert [server["policyTypes"], client["policyTypes"]] == [["Ingress", "Egress"]] * 2
    assert "egress" not in server
    assert "ingress" not in client
    assert server["ingress"] == [
        {"from": [{"podSelector": {"matchLabels": labels["breakwater-client"]}}], "ports": link}
    ]
    to_server, to_names = client["egress"]
    assert to_server == {"to": [{"podSelector": {"matchLabels": labels["breakwater-server"]}}], "ports": link}
    assert [port["port"] for port in to_names["ports"]] == [53, 53]


def test_ports_agree() -> None:
    (server,) = pod_of(*PODS[0])["initContainers"]
    listen = server["args"][server["args"].index("--listen") + 1]
    (port,) = manifest("Service", "breakwater-server")["spec"]["ports"]
    assert int(listen.split(":")[1]) == server["ports"][0]["containerPort"] == port["targetPort"] == port["port"]
    (client,) = pod_of(*PODS[1])["containers"]
    env = {entry["name"]: entry.get("value") for entry in client["env"]}
    assert env["CONNECT"] == f"breakwater-server:{port['port']}"
    # A regular init container is up while its pod is not Ready, and Services find its port by number only.
    assert manifest("Service", "breakwater-server")["spec"]["publishNotReadyAddresses"] is True


def test_a_pod_mounts_its_own_certificate_alone() -> None:
    stateful = manifest(*PODS[1])["spec"]
    (volume,) = [v for v in pod_of(*PODS[1])["volumes"] if v["name"] == "tls"]
    pods = [f"breakwater-client-{i}" for i in range(stateful["replicas"])]
    sources = [source["secret"] for source in volume["projected"]["sources"]]
    assert [source["name"] for source in sources] == pods
    for source in sources:
        items = {item["key"]: item["path"] for item in source["items"]}
        assert items == {name: f"{source['name']}/{name}" for name in ("ca.crt", "tls.crt", "tls.key")}
    (client,) = pod_of(*PODS[1])["containers"]
    (mount,) = [mount for mount in client["volumeMounts"] if mount["name"] == "tls"]
    assert mount["subPathExpr"] == "$(POD_NAME)"
    assert mount["readOnly"] is True
    fields = {
        entry["name"]: entry["valueFrom"]["fieldRef"]["fieldPath"] for entry in client["env"] if "valueFrom" in entry
    }
    assert fields["POD_NAME"] == "metadata.name"
    assert fields["WORKER"] == "metadata.labels['apps.kubernetes.io/pod-index']"


def test_the_experiment_has_as_many_clients_as_are_started() -> None:
    config = load(KUBERNETES / "server" / "experiment.toml")
    assert config.federation.clients == manifest(*PODS[1])["spec"]["replicas"]


def test_a_run_that_ended_well_is_not_started_again() -> None:
    spec = manifest(*PODS[0])["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    server, results = pod_of(*PODS[0])["initContainers"][0], pod_of(*PODS[0])["containers"][0]
    assert "restartPolicy" not in server  # it would be a sidecar, which never ends
    runs = [mount for mount in results["volumeMounts"] if mount["name"] == "runs"]
    assert runs == [{"name": "runs", "mountPath": "/var/lib/breakwater", "readOnly": True}]
