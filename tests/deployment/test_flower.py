"""SuperLink and a SuperNode with TLS by the compose file's commands, outside of containers, until it has joined."""

import json
from pathlib import Path

import pytest

from tests.deployment.files import DOCKER, DOCKERFILES, compose, dockerfile, environment, swapped
from tests.integration.processes import COMMAND, Process, Processes, free_address

pytestmark = pytest.mark.slow

STARTS_S = 120.0


def test_a_supernode_finds_the_superlink(processes: Processes, tmp_path: Path) -> None:
    services = compose(DOCKER / "compose.flower.tls.yaml")["services"]
    address, certs = free_address(), tmp_path / "certs"
    # As the head of the file says, but for the name.
    processes.breakwater("certs", "init", certs, "--host", "127.0.0.1").ends(0)
    connection = f'[superlink.compose]\naddress = "{address}"\nroot-certificates = "{certs / "ca.crt"}"\n'
    home = tmp_path / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(connection, encoding="utf-8")
    env = [
        f"{key}={swapped(value, {'/tmp/flwr': home, '/tmp': tmp_path})}"  # noqa: S108  # paths in the container
        for key, value in environment(dockerfile(DOCKERFILES[1]), 1).items()
    ]
    env.append(f"PATH={COMMAND.parent}:/usr/bin:/bin")  # Flower finds its own commands there
    host, port = address.split(":")
    places = {"superlink:8000": address, "8000": port, "/tls": certs / "server"}
    places["0.0.0.0"] = host  # noqa: S104  # it replaces that

    def start(name: str, *more: str) -> Process:
        words = [swapped(word, places) for word in services[name]["command"]]
        return processes.start("env", *env, COMMAND.with_name(f"flower-{name.split('-')[0]}"), *words, *more)

    # The node keeps trying until the SuperLink is there. Its port is its container's own; here it needs a free one.
    superlink, node = start("superlink"), start("supernode-0", "--port", free_address().split(":")[1])
    node.line("Starting Flower SuperExec", STARTS_S)  # said once the SuperLink knows it
    # The user's command, with the connection that the files tell to write.
    flwr = COMMAND.with_name("flwr")
    listed = processes.start("env", *env, flwr, "supernode", "list", "compose", "--format", "json")
    assert listed.wait(STARTS_S) == 0, listed.said()
    answer = json.loads("\n".join(listed.out))
    assert [node["status"] for node in answer["nodes"]] == ["online"], answer
    for process in (node, superlink):
        process.ctrl_c()
    for process in (node, superlink):
        process.wait(STARTS_S)
