"""The commands of compose files, units and manifests, run outside of what would run them: a federation trains over TLS.

Only places differ: folders of the test stand for volumes, a free port of this machine for the server's address.
"""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.cli import _parser
from tests.deployment.confined import filter_script
from tests.deployment.files import (
    DOCKER,
    DOCKERFILES,
    KUBERNETES,
    SYSTEMD,
    clients_of,
    compose,
    dockerfile,
    documented,
    environment,
    expanded,
    manifest,
    pod_of,
    ran,
    swapped,
    unit,
)
from tests.integration.processes import COMMAND, ROOT, Process, Processes, sets, summary_of

QUICK = sets("strategy.rounds=20", "evaluation.every=10")
"""What the test adds to the server's command, to be soon done."""

PAIR = sets("federation.clients=2", "federation.start_with=2", "federation.byzantine=0")
PAIR += sets("strategy.cohort=2", "strategy.full_cohort=2")
"""Makes a federation of the first two clients; that of the compose file is whole."""

OPT, ETC = "/opt/breakwater/.venv/bin/breakwater", "/etc/breakwater"


@dataclass(frozen=True)
class Federation:
    """What a way of deploying starts.

    Args:
        certs: the words behind `breakwater certs`, one command after the other.
        server: the server's words.
        clients: each client's words, by the name that its certificate must give it.
        address: what the clients call the server.
        places: what stands for a path; ``{name}`` is the party's.
        env: the environment of all.
        confined: Python code that confines what it becomes, where that can be done here.
    """

    certs: Sequence[Sequence[str]]
    server: Sequence[str]
    clients: Mapping[str, Sequence[str]]
    address: str
    places: Mapping[str, str]
    env: Mapping[str, str]
    confined: str | None = None


def image_env() -> dict[str, str]:
    env = environment(dockerfile(DOCKERFILES[0]), 2)
    del env["PATH"]
    return env


def by_compose() -> Federation:
    services = compose(DOCKER / "compose.yaml")["services"]
    assert services["certs"]["entrypoint"] == ["breakwater", "certs"]
    typed = [line.partition("--rm certs ")[2] for line in documented("Containers") if "--rm certs " in line]
    return Federation(
        certs=[shlex.split(line) for line in typed],
        server=["breakwater", *services["server"]["command"]],
        clients={name: ["breakwater", *words] for name, words in clients_of(services).items()},
        address="server:9090",
        places={
            f"{ETC}/experiment.toml": str(ROOT / "deploy" / "configs" / "by-hand.toml"),
            "/tls": "{tmp}/certs/{name}",
            "/certs": "{tmp}/certs",
        },
        env={**image_env(), "BREAKWATER_DATA": "{tmp}/empty"},
    )


def by_systemd() -> Federation:
    server, client = (unit(SYSTEMD / name) for name in ("breakwater-server.service", "breakwater-client@.service"))
    given = dict(pair.split("=", 1) for pair in server["Environment"][0].split())
    lines = [line for line in documented("systemd") if line.startswith("breakwater certs ")]
    names = shlex.split(lines[1])[4:]
    return Federation(
        certs=[shlex.split(line)[2:] for line in lines],
        server=expanded(server, {"d": "/credentials"}, given),
        clients={
            name: expanded(
                client, {"d": "/credentials", "i": name}, {"CONNECT": "server.example:9090", "OPTIONS": f"--worker {i}"}
            )
            for i, name in enumerate(names)
        },
        address="server.example:9090",
        places={
            OPT: "breakwater",
            f"{ETC}/experiment.toml": "{tmp}/etc/breakwater/experiment.toml",
            "/credentials": "{tmp}/etc/breakwater/tls/{name}",
        },
        env=dict(pair.replace("%C", "{tmp}/cache").split("=") for pair in server["Environment"][1].split()),
        confined=filter_script(server),
    )


def by_kubernetes() -> Federation:
    (server,) = pod_of("Deployment", "breakwater-server")["initContainers"]
    (client,) = pod_of("StatefulSet", "breakwater-client")["containers"]
    connect = next(entry["value"] for entry in client["env"] if entry["name"] == "CONNECT")
    replicas = manifest("StatefulSet", "breakwater-client")["spec"]["replicas"]
    lines = [line for line in documented("Kubernetes") if line.startswith("breakwater certs ")]
    return Federation(
        certs=[shlex.split(line)[2:] for line in lines],
        server=["breakwater", *server["args"]],
        clients={
            f"breakwater-client-{i}": [
                "breakwater",
                *(swapped(word, {"$(CONNECT)": connect, "$(WORKER)": i}) for word in client["args"]),
            ]
            for i in range(replicas)
        },
        address=connect,
        places={f"{ETC}/experiment.toml": str(KUBERNETES / "server" / "experiment.toml"), "/tls": "{tmp}/certs/{name}"},
        env=image_env(),
    )


WAYS = {"compose": by_compose, "systemd": by_systemd, "kubernetes": by_kubernetes}


@pytest.mark.parametrize("way", WAYS)
def test_every_command_is_one_that_breakwater_has(way: str) -> None:
    federation = WAYS[way]()
    for words in (federation.server, *federation.clients.values(), *(("", "certs", *c) for c in federation.certs)):
        _parser().parse_args(words[1:])  # ends the test where an option is unknown or missing
    assert federation.server[1] == "server"
    for words in federation.clients.values():
        assert words[1:4] == ["client", "--connect", federation.address]


def test_every_command_that_the_page_tells_is_one_that_breakwater_has() -> None:
    found = 0
    for section in ("Containers", "systemd", "Kubernetes"):
        for line in documented(section):
            match = re.match(r"breakwater |docker compose run --rm (?=certs)|docker run .* breakwater:\S+ ", line)
            if match:
                found += 1
                _parser().parse_args(shlex.split(line[match.end() :]))
    assert found == 7


@pytest.mark.parametrize("section", ["Containers", "systemd", "Kubernetes"])
def test_the_page_names_files_that_exist(section: str) -> None:
    named = re.findall(r"\bdeploy/[\w./@-]+", "\n".join(documented(section)))
    assert named
    for name in named:
        assert (ROOT / name).exists()


def installed(tmp: Path) -> Iterator[str]:
    """Run what docs/deploy.md tells to install for systemd, in a folder that stands for /; yield each command."""
    for line in documented("systemd"):
        if "sudo install" in line:
            command = swapped(line, {"sudo ": "", "/etc/": f"{tmp}/etc/", "deploy/": f"{ROOT}/deploy/"})
            ended = ran("bash", "-euc", command, cwd=tmp)
            assert ended.returncode == 0, ended.stderr
            yield command


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_federation_trains_by_these_commands(way: str, processes: Processes, tmp_path: Path) -> None:
    federation = WAYS[way]()
    for folder in ("tmp", "empty", "server"):
        (tmp_path / folder).mkdir()

    def outside(text: str, name: str = "") -> str:
        places = {"/tmp": f"{tmp_path}/tmp", **federation.places}  # noqa: S108  # a path in the container
        return swapped(text, places).replace("{tmp}", str(tmp_path)).replace("{name}", name)

    def start(words: Sequence[str], name: str, *more: str) -> Process:
        env = [f"{key}={outside(value, name)}" for key, value in federation.env.items()]
        command, *rest = (outside(word, name) for word in words)
        assert command == "breakwater"
        before = [] if federation.confined is None else [sys.executable, "-c", federation.confined]
        return processes.start("env", f"--chdir={tmp_path / 'server'}", *env, *before, COMMAND, *rest, *more)

    for command in federation.certs:
        words = [outside(word) for word in command]
        host = words.index("--host") + 1 if "--host" in words else None
        if host is not None:
            words[host] = "127.0.0.1"
        processes.start("env", f"--chdir={tmp_path}", COMMAND, "certs", *words).ends(0)
    if way == "systemd":
        shutil.copytree(tmp_path / "certs" / "alice", tmp_path / "alice")
        (tmp_path / "etc/systemd/system").mkdir(parents=True)
        assert len(list(installed(tmp_path))) == 6
        shutil.copytree(tmp_path / "certs" / "bob", tmp_path / "etc/breakwater/tls/bob")

    listen = federation.server[federation.server.index("--listen") + 1]
    words = ["127.0.0.1:0" if word == listen else word for word in federation.server]
    count = len(federation.clients) if way == "compose" else 2
    server = start(words, "server", *QUICK, *([] if way == "compose" else PAIR))
    address = server.line(r"^listening on (\S+)")[1]
    clients = {
        name: start([address if word == federation.address else word for word in words], name)
        for name, words in list(federation.clients.items())[:count]
    }
    server.ends(0)
    for name, client in clients.items():
        client.ends(0)
        assert client.out[-1] == f"{name}: the run is over"  # a certified name: none was given
    assert "without TLS" not in server.said()
    (run,) = (tmp_path / "server" / "runs").iterdir()
    summary = summary_of(run)
    assert (summary["status"], summary["rounds"]) == ("finished", 20)
    assert summary["loss"] < summary["start"]["loss"]
