"""docs/machines.md is true: its commands are run word for word, each machine a network namespace of its own.

All of it happens in a mount and a network namespace that belong to one child process: interfaces, addresses and the
hosts file that the machines see exist nowhere else, and end with it. Where users may make namespaces it needs no root.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.processes import ROOT, SOON_S, Process, Processes, rounds_of, summary_of, until

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "machines.md").read_text(encoding="utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"<!-- (.+?) -->\n```sh\n(.*?)```", PAGE, re.DOTALL)
"""What is said of each block of commands, and the commands."""
CLIENTS = ("alice", "bob", "carol", "mallory")
MACHINES = {name: f"10.99.0.{i}" for i, name in enumerate(("server", *CLIENTS), 1)}

NETWORK = """
set -e
mount -t tmpfs none /run
mount --bind "$1" /etc/hosts
ip link add bridge type bridge
ip link set bridge up
shift
for machine; do
  name=${machine%=*} address=${machine#*=}
  ip netns add $name
  ip link add to-$name type veth peer name eth0 netns $name
  ip link set to-$name master bridge up
  ip -n $name link set lo up
  ip -n $name address add $address/24 dev eth0
  ip -n $name link set eth0 up
done
echo ready
exec sleep infinity
"""
"""Makes a bridge and, for each NAME=ADDRESS, a namespace that is joined to it."""

SNIFF = """
import socket, sys
cable = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
cable.bind(("to-server", 0))
print("listening", flush=True)
with open(sys.argv[1], "wb", buffering=0) as file:
    while True:
        file.write(cable.recv(1 << 17))
"""
"""Writes down all that goes to the server and comes from it."""


class Machines:
    """The machines of the page, each with a checkout folder of its own."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        self._processes = processes
        self._folder = folder
        self._users = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        hosts = folder / "hosts"
        lines = [f"{address} {name}.example" for name, address in MACHINES.items()]
        hosts.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]), encoding="utf-8")
        given = [f"{name}={address}" for name, address in MACHINES.items()]
        inside = ["sh", "-c", NETWORK, "network", str(hosts), *given]
        self._network = processes.start("unshare", *self._users, "--net", "--mount", *inside)
        self._network.line("^ready$")
        for name in MACHINES:
            (folder / name / "certs").mkdir(parents=True)  # what the page has set up by hand
            (folder / name / ".venv").symlink_to(sys.prefix)
            (folder / name / "deploy").symlink_to(ROOT / "deploy")
        (folder / "server" / "certs").rmdir()

    def __getitem__(self, name: str) -> Path:
        """Return the folder that is a machine's checkout."""
        return self._folder / name

    def run(self, name: str, commands: str) -> Process:
        """Start commands on a machine."""
        inside = ["nsenter", f"--net=/run/netns/{name}", "env", "-C", str(self[name]), "sh", "-ec", commands]
        return self._processes.start(*self._enter(), *inside)

    def outside(self, *command: str | Path) -> Process:
        """Start a command where the cables meet."""
        return self._processes.start(*self._enter(), *command)

    def end(self) -> None:
        """Pull down the network; nothing of it remains."""
        self._network.end()

    def _enter(self) -> list[str]:
        users = ["--user", "--preserve-credentials"] if self._users else []
        return ["nsenter", f"--target={self._network.pid}", *users, "--net", "--mount"]


@pytest.fixture
def machines(processes: Processes, tmp_path: Path) -> Iterator[Machines]:
    tools = {tool: shutil.which(tool) or "" for tool in ("unshare", "nsenter", "ip")}
    if "" in tools.values():
        pytest.skip(f"needs {', '.join(tools)} to make network namespaces")
    users = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    probe = "mount -t tmpfs none /run && ip link add bridge type bridge && ip netns add machine"
    command = [tools["unshare"], *users, "--net", "--mount", "sh", "-c", probe]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"this machine forbids to make network namespaces: {made.stderr.strip()}")
    network = Machines(processes, tmp_path)
    yield network
    network.end()


def blocks(said: str) -> list[str]:
    """Return the commands of the blocks of which this is said."""
    return [commands for where, commands in BLOCKS if where == said]


def certify(machines: Machines) -> str:
    """Make the certificates as the page says, copy them as scp would; return the commands that start the server."""
    make_certificates, serve = blocks("on server")
    machines.run("server", make_certificates).ends(0)
    (copies,) = blocks("copy")
    for line in copies.splitlines():
        words = re.fullmatch(r"scp -pr (\S+) (\w+)\.example:breakwater/(\S+)", line)
        assert words, line
        source, host, target = words.groups()
        shutil.copytree(machines["server"] / source, machines[host] / target / Path(source).name)
    return serve


def test_every_block_of_the_page_has_its_place() -> None:
    assert len(BLOCKS) == PAGE.count("```sh\n")
    places = ["by hand", "on server", "copy", "on server", *(f"on {name}" for name in CLIENTS), "on server, in the end"]
    assert [where for where, _ in BLOCKS] == places


def test_the_page_word_for_word(machines: Machines, tmp_path: Path) -> None:
    tape = tmp_path / "tape"
    sniffer = machines.outside(sys.executable, "-c", SNIFF, tape)
    sniffer.line("^listening$")
    serve = certify(machines)
    server = machines.run("server", serve)
    server.line(r"^listening on 0\.0\.0\.0:9090$")
    assert "open to the network" not in server.said()
    first = {name: machines.run(name, blocks(f"on {name}")[0]) for name in CLIENTS[:2]}
    plain = machines.run("carol", blocks("on carol")[0].replace("--tls certs/carol", "--name carol --patience 0.1"))
    plain.ends(1)
    assert "it speaks TLS; give this client its certificate with --tls DIR" in plain.err[-1]
    clients = first | {name: machines.run(name, blocks(f"on {name}")[0]) for name in CLIENTS[2:]}
    for name, process in (("server", server), *clients.items()):
        process.ends(0, 3 * SOON_S)
        assert name == "server" or process.out == [f"{name}: the run is over"]
    sniffer.end()
    assert "andshake" not in server.said(), "a stranger can say nothing on the server's terminal"

    (tell,) = blocks("on server, in the end")
    told = machines.run("server", tell)
    told.ends(0)
    summary = json.loads("\n".join(told.out))
    assert summary == summary_of(machines["server"] / "runs" / "first")
    assert summary["rejected"] == {}
    assert summary["accuracy"] > 0.9
    log = (machines["server"] / "runs" / "first" / "logs" / "server.log").read_text(encoding="utf-8")
    for name in CLIENTS:
        assert re.search(rf"ipv4:{MACHINES[name]}:\d+: seat \d is taken by {name}, by its certificate", log)

    heard = tape.read_bytes()
    # The run has passed here; on a busy machine the kernel drops some of the copies.
    assert len(heard) > (summary["bytes_up"] + summary["bytes_down"]) / 2
    assert heard.count(b"PRI * HTTP/2.0") >= 1, "what the plain client said"
    for secret in (b"breakwater.link.v1", b"fingerprint", b"rand-k", b"byz-vr-marina-pp", b"[strategy]", b"mallory"):
        assert secret not in heard


def test_a_machine_goes_away_and_comes_back(machines: Machines) -> None:
    serve = certify(machines)
    changes = ("strategy.rounds=1000000", "federation.heartbeat_s=0.5", "federation.deadline_s=1.0")
    server = machines.run("server", " --set ".join([serve.strip(), *changes]))
    clients = {name: machines.run(name, blocks(f"on {name}")[0]) for name in CLIENTS}
    out = machines["server"] / "runs" / "first"
    until(lambda: rounds_of(out), "the first round", 3 * SOON_S)
    seat = int(clients["alice"].line(r"joined as worker (\d)")[1])

    def alice_counts() -> bool:
        return any(seat in line["accepted"] for line in rounds_of(out)[-20:])

    until(alice_counts, "a reply of alice")
    machines.outside("ip", "link", "set", "to-alice", "down").ends(0)
    until(lambda: not alice_counts(), "rounds without alice")
    machines.outside("ip", "link", "set", "to-alice", "up").ends(0)
    until(alice_counts, "alice is back")
    assert clients["alice"].line(r"alice: no stream to server\.example:9090: ")
    assert clients["alice"].said().count(f"alice: joined as worker {seat} of 4") == 2
    reasons = {entry["reason"] for line in rounds_of(out) for entry in line["rejected"] if entry["client"] == "alice"}
    assert any(reason.startswith(("disconnected", "silent")) for reason in reasons)

    server.ctrl_c()
    assert server.wait() in (130, -signal.SIGINT), "the shell hears it too"
    assert summary_of(out)["status"] == "interrupted"
    for process in clients.values():
        process.ends(0)
