"""docs/machines.md is true: its commands are run word for word, each machine a network namespace of its own."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.integration.machines import BLOCKS, CLIENTS, MACHINES, PAGE, Machines, blocks
from tests.integration.processes import SOON_S, summary_of

pytestmark = pytest.mark.slow

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
