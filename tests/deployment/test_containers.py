"""The image as real containers: built by podman as the Dockerfile stands, run as compose files, page and manifests say.

`make test-containers` runs this file; `make test` does not, as it makes a base image and installs all packages into it.
"""

import json
import os
import re
import shlex
import shutil
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiment.code import code_fingerprint
from tests.deployment.files import DOCKER, KUBERNETES, clients_of, compose, documented, manifest, manifests, read
from tests.deployment.podman import MissingError, Podman, why_not
from tests.integration.processes import ROOT, rounds_of, sets, summary_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.containers,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

LIVE = compose(DOCKER / "compose.yaml")
SERVICES = LIVE["services"]
IMAGE = SERVICES["server"]["image"]
CERTS = [line.partition("--rm certs ")[2] for line in documented("Containers") if "--rm certs " in line]
"""What the page tells to type behind `docker compose run --rm certs`."""
ENDLESS = sets("strategy.rounds=1000000")


@pytest.fixture(scope="module")
def engine() -> Iterator[Podman]:
    try:
        with Podman() as podman:
            podman.build(IMAGE)
            yield podman
    except MissingError as error:
        pytest.skip(str(error))


@pytest.fixture
def podman(engine: Podman) -> Iterator[Podman]:
    """The image and the networks of the compose files; nothing else is left from one test to the next."""
    engine("network", "create", "--internal", "federation")
    engine("network", "create", "outside")
    yield engine
    engine.emptied()


def certs(podman: Podman, typed: str) -> str:
    """Run a command of the service `certs`."""
    return podman("run", "--rm", *podman.service(LIVE, "certs"), IMAGE, *shlex.split(typed))


def up(podman: Podman, name: str, *more: str, options: tuple[str, ...] = ()) -> None:
    """Start a service as a container of its name."""
    podman(
        "run",
        "--detach",
        "--name",
        name,
        *podman.service(LIVE, name),
        *options,
        IMAGE,
        *SERVICES[name]["command"],
        *more,
    )


def runs(podman: Podman) -> Path:
    return podman.volume("runs") / "runs" / "first"


def rounds(podman: Podman) -> int:
    return len(rounds_of(runs(podman)))


def test_the_image_holds_the_code_and_its_processes_hold_no_rights(podman: Podman) -> None:
    probe = """
import json, os, pathlib
from experiment.code import code_fingerprint
def wrote(path):
    try:
        pathlib.Path(path, "x").touch()
    except OSError as error:
        return error.strerror
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({
    "user": [os.getuid(), os.getgid()],
    "code": code_fingerprint(),
    "caps": [status[key] for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "new privileges": status["NoNewPrivs"],
    "folders": sorted(os.listdir("/opt/breakwater")),
    "deploy": sorted(os.listdir("/opt/breakwater/deploy")),
    "written": {path: wrote(path) for path in "/ /opt/breakwater /opt/venv /etc /certs /tls /tmp .".split()},
}))
"""
    certs(podman, CERTS[0])
    words = [*podman.service(LIVE, "server"), "--restart=no", "--entrypoint", "python"]
    found = json.loads(podman("run", "--rm", *words, IMAGE, "-c", probe))
    read_only = "Read-only file system"
    assert found["written"].pop("/certs") == read_only  # another service's volume is not even mounted
    assert found["written"] == {
        **dict.fromkeys(("/", "/opt/breakwater", "/opt/venv", "/etc", "/tls"), read_only),
        **dict.fromkeys(("/tmp", ".")),  # noqa: S108  # a path in the container
    }
    assert found["user"] == [10001, 10001]
    assert found["code"] == code_fingerprint()
    assert set(found["caps"]) == {"0" * 16}
    assert found["new privileges"] == "1"
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks", "docs"}
    assert set(found["folders"]) == packages | {"examples", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert not {"docker", "kubernetes", "systemd"} & set(found["deploy"])


def test_a_server_that_is_killed_is_started_again_and_the_run_ends_well(podman: Podman) -> None:
    for typed in CERTS:
        certs(podman, typed)
    assert {path.name for path in podman.volume("certs").iterdir() if path.is_dir()} == {
        "server",
        *clients_of(SERVICES),
    }
    up(podman, "server", *sets("strategy.rounds=2000", "checkpoint.every=50"))
    for name in clients_of(SERVICES):
        up(podman, name)
    podman.until(
        lambda: podman.volume("runs").joinpath("runs/first/checkpoints").is_dir() and rounds(podman) > 100, "100 rounds"
    )
    before = podman.inspect("server")
    os.kill(before["State"]["Pid"], signal.SIGKILL)
    reached = rounds(podman)
    assert 100 < reached < 2000

    podman.ends("server", 0)
    for name in clients_of(SERVICES):
        podman.ends(name, 0)
        assert f"{name}: the run is over\n" in podman.logs(name)
        assert podman.inspect(name)["RestartCount"] == 0
    assert podman.inspect("server")["RestartCount"] == 1  # by the engine, as the compose file's `restart` says
    (after,) = re.findall(r"^going on after round (\d+)$", podman.logs("server"), re.MULTILINE)
    assert reached - 150 <= int(after) <= reached + 50  # the last checkpoint, which the kill may have left behind
    summary = summary_of(runs(podman))
    assert (summary["status"], summary["rounds"]) == ("finished", 2000)
    assert [entry["round"] for entry in rounds_of(runs(podman))] == list(range(1, 2001))
    assert summary["accuracy"] > 0.9
    assert "without TLS" not in podman.logs("server")
    # `docker compose cp server:/var/lib/breakwater/runs .`
    assert (runs(podman) / "report.html").stat().st_uid == 10001


def test_a_client_that_is_revoked_is_cut_off_and_the_run_goes_on(podman: Podman, tmp_path: Path) -> None:
    """With one client outside, where it is started as the page says for a client's machine."""
    certs(podman, CERTS[0].replace("--host server", "--host server --host server.example"))
    certs(podman, CERTS[1])
    public = compose(DOCKER / "compose.public.yaml")["services"]["server"]
    _, _, port = public["ports"][0].rpartition(":")
    assert SERVICES["server"]["expose"] == [port]
    networks = public["networks"]
    assert networks == ["federation", "outside"]
    up(podman, "server", *ENDLESS, options=("--network=outside:alias=server.example",))
    outside, *inside = clients_of(SERVICES)
    for name in inside:
        up(podman, name)

    (typed,) = [line for line in documented("Containers") if line.startswith("docker run ")]
    shutil.copytree(podman.volume("certs") / outside, tmp_path / outside)
    os.chown(tmp_path / outside / "tls.key", os.geteuid(), os.getegid())
    words = shlex.split(
        typed.replace("$PWD", str(tmp_path)).replace("$(id -u):$(id -g)", f"{os.geteuid()}:{os.getegid()}")
    )
    assert words[:3] == ["docker", "run", "--rm"]
    podman("run", "--detach", "--name", outside, "--network=outside", *words[3:])

    podman.until(lambda: (runs(podman) / "metrics.jsonl").exists() and rounds(podman) > 20, "rounds")
    said = certs(podman, f"revoke /certs {outside}")
    assert f"'{outside}': 1 certificate revoked" in said
    podman.line("server", f"{outside}: cut off: revoked")
    podman.ends(outside, 2)
    assert f"{outside}: refused by the server: revoked" in podman.logs(outside)
    reached = rounds(podman)
    podman.until(lambda: rounds(podman) > reached + 20, "rounds after the revocation")
    assert all(outside not in str(entry) for entry in rounds_of(runs(podman))[-1:])

    podman("stop", "--time=30", "server")
    assert podman.inspect("server")["State"]["ExitCode"] == 130, podman.logs("server")
    assert summary_of(runs(podman))["status"] == "interrupted"
    for name in inside:
        assert podman.inspect(name)["State"]["Status"] == "running"  # they wait for the server


def rendered() -> Iterator[dict[str, Any]]:
    """Yield the manifests with image and experiment put in, as `kubectl kustomize` does (test_kubernetes.py)."""
    (image,) = yaml.safe_load(read(KUBERNETES / "kustomization.yaml"))["images"]
    text = yaml.safe_dump_all(manifests(), sort_keys=False)
    yield from yaml.safe_load_all(text.replace("image: breakwater\n", f"image: {image['newName']}:{image['newTag']}\n"))
    (generated,) = yaml.safe_load(read(KUBERNETES / "server" / "kustomization.yaml"))["configMapGenerator"]
    data = {name: read(KUBERNETES / "server" / name) for name in generated["files"]}
    yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generated["name"]}, "data": data}


def pod_of_set(stateful: dict[str, Any], index: int) -> dict[str, Any]:
    """Return the pod that a StatefulSet makes, without what podman 4.3 does not know.

    That is projected volumes and `subPathExpr`, for which the pod's Secret is mounted, and `$(NAME)` in arguments.
    """
    name = f"{stateful['metadata']['name']}-{index}"
    template = json.loads(json.dumps(stateful["spec"]["template"]))
    template["metadata"] |= {"name": name}
    template["metadata"]["labels"] |= {"apps.kubernetes.io/pod-index": str(index)}
    spec = template["spec"]
    (tls,) = [volume for volume in spec["volumes"] if volume["name"] == "tls"]
    (source,) = [each["secret"] for each in tls.pop("projected")["sources"] if each["secret"]["name"] == name]
    assert all(item["path"] == f"{name}/{item['key']}" for item in source["items"])
    tls["secret"] = {"secretName": name, "optional": False}
    (container,) = spec["containers"]
    for entry in container["env"]:
        if entry["name"] == "WORKER":
            assert entry.pop("valueFrom")["fieldRef"]["fieldPath"].endswith("pod-index']")
            entry["value"] = str(index)
    given = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    container["args"] = [re.sub(r"\$\((\w+)\)", lambda match: given[match[1]], word) for word in container["args"]]
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "tls"]
    assert mount.pop("subPathExpr") == "$(POD_NAME)"
    for volume in spec["volumes"]:  # for podman an emptyDir is a volume of that name, which other pods would share
        if "emptyDir" in volume:
            for each in container["volumeMounts"]:
                each["name"] = f"{name}-{each['name']}" if each["name"] == volume["name"] else each["name"]
            volume["name"] = f"{name}-{volume['name']}"
    return {"apiVersion": "v1", "kind": "Pod", **template}


def test_the_manifests_run_as_pods(podman: Podman, tmp_path: Path) -> None:
    lines = documented("Kubernetes")
    for line in lines:
        if line.startswith("breakwater certs "):
            words = shlex.split(line)[2:]
            place = f"--volume={tmp_path}:/work"
            podman("run", "--rm", "--network=none", "--user=0:0", "--workdir=/work", place, IMAGE, "certs", *words)
    stateful = manifest("StatefulSet", "breakwater-client")
    replicas = stateful["spec"]["replicas"]
    folders = {"breakwater-server": "server"} | {
        f"breakwater-client-{i}": f"breakwater-client-{i}" for i in range(replicas)
    }
    for secret, folder in folders.items():
        # As podman 4.3 keeps a Secret's manifest, but not in base64, which it would mount as it stands.
        data = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "certs" / folder).iterdir()}
        podman("secret", "create", secret, "-", stdin=yaml.safe_dump({"kind": "Secret", "data": data}))

    objects = list(rendered())
    known = [each for each in objects if each["kind"] in {"ConfigMap", "PersistentVolumeClaim"}]
    (deployment,) = [each for each in objects if each["kind"] == "Deployment"]
    (tls,) = [v for v in deployment["spec"]["template"]["spec"]["volumes"] if v["name"] == "tls"]
    tls["secret"]["optional"] = False  # the default, without which podman 4.3 crashes
    # Podman 4.3 applies the pod's policy to init containers too, and would begin the run that has ended again.
    deployment["spec"]["template"]["spec"]["restartPolicy"] = "OnFailure"
    (stateful,) = [each for each in objects if each["kind"] == "StatefulSet"]
    files = {"server": [*known, deployment]}
    for index in range(replicas):
        files[f"client-{index}"] = [pod_of_set(stateful, index)]
    for name, each in files.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump_all(each), encoding="utf-8")

    def play(name: str, *options: str) -> list[str | Path]:
        return ["kube", "play", *options, tmp_path / f"{name}.yaml"]

    # The run is the pod's init container, and podman waits for its end. A Service's name is an alias in the network.
    server = podman.started(*play("server", "--network=federation:alias=breakwater-server"))
    for index in range(replicas):
        podman(*play(f"client-{index}", "--network=federation"))
    pod = "breakwater-server-pod-0"
    podman.line(f"{pod}-server", f"{replicas} of {replicas} clients joined")
    running = podman.inspect(f"{pod}-server")  # podman removes it when it has ended well
    assert server.wait(120.0) == 0, server.said() + podman.logs(f"{pod}-server")
    for found in (running, podman.inspect(f"{pod}-results"), podman.inspect("breakwater-client-0-client")):
        assert found["HostConfig"]["ReadonlyRootfs"] is True
        assert not found["EffectiveCaps"]
        assert "no-new-privileges" in found["HostConfig"]["SecurityOpt"]
    for index in range(replicas):
        podman.line(
            f"breakwater-client-{index}-client", f"breakwater-client-{index}: joined as worker {index} of {replicas}"
        )
        podman.line(f"breakwater-client-{index}-client", f"breakwater-client-{index}: the run is over")

    # The pod is ready: what fetches the results, from the container that keeps them.
    (typed,) = [line for line in lines if " exec deployment/breakwater-server " in line]
    words = shlex.split(typed.partition(" | ")[0].partition(" -- ")[2])
    with (tmp_path / "runs.tar").open("wb") as file:
        podman.wrote(file, "exec", f"{pod}-results", *words)
    with tarfile.open(tmp_path / "runs.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    summary = summary_of(tmp_path / "runs" / "first")
    assert (summary["status"], summary["rounds"]) == ("finished", 300)
    podman("stop", "--time=10", f"{pod}-results")
    podman.ends(f"{pod}-results", 0)
