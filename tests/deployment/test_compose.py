"""The compose files: valid, hardened, and in agreement with each other and with the experiment they run."""

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from experiment.config import load
from tests.deployment.files import COMPOSE, DOCKER, clients_of, compose, ran

LIVE, FLOWER = compose(DOCKER / "compose.yaml"), compose(DOCKER / "compose.flower.yaml")


def services(*files: dict[str, Any]) -> list[Any]:
    return [pytest.param(s, id=f"{f['name']}-{name}") for f in files for name, s in f["services"].items()]


def test_they_obey_the_schema() -> None:
    command = Path(sys.executable).with_name("check-jsonschema")
    ended = ran(command, "--builtin-schema", "vendor.compose-spec", *COMPOSE)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("service", services(LIVE, FLOWER))
def test_a_container_can_do_no_more_than_it_must(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] <= 512
    assert [mount.split(":")[0] for mount in service["tmpfs"]] == ["/tmp"]  # noqa: S108  # a path in the container
    assert not {"privileged", "cap_add", "devices", "user", "pid", "ipc", "network_mode"} & {
        key for key in service if not (key == "network_mode" and service[key] == "none")
    }


@pytest.mark.parametrize("file", [LIVE, FLOWER], ids=["live", "flower"])
def test_a_container_writes_to_its_own_volumes_alone(file: dict[str, Any]) -> None:
    writable: dict[str, list[str]] = {}
    for name, service in file["services"].items():
        for mount in service.get("volumes", []):
            if isinstance(mount, str):
                source, _, *mode = mount.split(":")
                read_only = mode == ["ro"]
            else:
                source, read_only = mount["source"], mount["read_only"]
            if not read_only:
                writable.setdefault(source, []).append(name)
            assert source in file["volumes"]
    owners = {"breakwater": {"certs": ["certs"], "runs": ["server"]}, "breakwater-flower": {"runs": ["superlink"]}}
    assert writable == owners[file["name"]]


def test_only_what_must_be_reached_from_outside_can_be() -> None:
    for file in (LIVE, FLOWER):
        assert file["networks"]["federation"] == {"internal": True}
        for name, service in file["services"].items():
            if "ports" in service:
                assert (name, service["ports"]) == ("superlink", ["127.0.0.1:8000:8000"])
    public = compose(DOCKER / "compose.public.yaml")["services"]
    assert list(public) == ["server"]
    assert public["server"]["ports"] == ["0.0.0.0:9090:9090"]


def test_ports_agree() -> None:
    server = LIVE["services"]["server"]
    command = server["command"]
    listen = command[command.index("--listen") + 1]
    assert server["expose"] == [listen.split(":")[1]] == ["9090"]
    for client in clients_of(LIVE["services"]).values():
        assert client[client.index("--connect") + 1] == f"server:{listen.split(':')[1]}"


def test_every_client_has_its_own_certificate_and_its_own_part_of_the_data() -> None:
    clients = clients_of(LIVE["services"])
    workers = [int(command[command.index("--worker") + 1]) for command in clients.values()]
    assert workers == list(range(len(clients)))
    for name, service in LIVE["services"].items():
        mounts = [mount for mount in service.get("volumes", []) if isinstance(mount, dict)]
        if name == "certs":
            assert mounts == []
            continue
        (mount,) = mounts
        command = service["command"]
        assert mount["target"] == command[command.index("--tls") + 1]
        assert mount["volume"]["subpath"] == name
        assert mount["source"] == "certs"


def test_the_experiment_has_as_many_clients_as_are_started() -> None:
    config = load(DOCKER / LIVE["configs"]["experiment"]["file"])
    assert config.federation.clients == len(clients_of(LIVE["services"]))
    command = LIVE["services"]["server"]["command"]
    assert command[1] == LIVE["services"]["server"]["configs"][0]["target"]


def test_an_overlay_changes_services_that_are_there() -> None:
    for overlay, base in (("compose.public.yaml", LIVE), ("compose.flower.tls.yaml", FLOWER)):
        assert set(compose(DOCKER / overlay)["services"]) <= set(base["services"])


@pytest.mark.parametrize("path", [DOCKER / "compose.flower.yaml", DOCKER / "compose.flower.tls.yaml"], ids=str)
def test_supernodes_share_out_all_partitions(path: Path) -> None:
    all_services = compose(path)["services"]
    nodes = {name: s["command"] for name, s in all_services.items() if name.startswith("supernode-")}
    for index, (name, command) in enumerate(nodes.items()):
        assert name == f"supernode-{index}"
        pairs = dict(pair.split("=") for pair in shlex.split(command[command.index("--node-config") + 1]))
        assert pairs == {"partition-id": str(index), "num-partitions": str(len(nodes))}
        assert command[command.index("--superlink") + 1] == "superlink:8000"
    assert set(nodes) | {"superlink"} == set(all_services)


def test_tls_leaves_nothing_insecure() -> None:
    tls = compose(DOCKER / "compose.flower.tls.yaml")["services"]
    words = [word for service in tls.values() for word in service["command"]]
    assert "--insecure" not in words
    paths = {match[1] for word in words if (match := re.fullmatch(r"(?:--ssl-\w+=)?/tls/(\S+)", word))}
    assert paths == {"ca.crt", "tls.crt", "tls.key"}


def test_without_tls_the_options_are_the_same_but_for_tls() -> None:
    """What is run with TLS (test_flower.py) is then known to be understood without."""

    def options(file: str, name: str) -> set[str]:
        words = compose(DOCKER / file)["services"][name]["command"]
        return {word.partition("=")[0] for word in words if word.startswith("--")}

    for name in ("superlink", "supernode-0"):
        plain, secure = (options(file, name) for file in ("compose.flower.yaml", "compose.flower.tls.yaml"))
        assert plain - secure == {"--insecure"}
        assert secure - plain in (
            {"--root-certificates"},
            {"--ssl-ca-certfile", "--ssl-certfile", "--ssl-keyfile"},
        )
