"""The machines of docs/machines.md, each a network namespace with an address of its own, joined by veth pairs.

All of it happens in a mount and a network namespace that belong to one child process: interfaces, addresses and the
hosts file that the machines see exist nowhere else, and end with it. Where users may make namespaces it needs no root.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from deploy.certs import init, issue
from tests.integration.processes import ROOT, Process, Processes

PAGE = (ROOT / "docs" / "machines.md").read_text(encoding="utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"<!-- (.+?) -->\n```sh\n(.*?)```", PAGE, re.DOTALL)
"""What is said of each block of commands, and the commands."""
CLIENTS = ("alice", "bob", "carol", "mallory")
MACHINES = {name: f"10.99.0.{i}" for i, name in enumerate(("server", *CLIENTS), 1)}

_TOOLS = ("unshare", "nsenter", "ip")
_PROBE = (
    "mount -t tmpfs none /run && ip link add bridge type bridge && ip netns add machine"
    " && ip link add cable type veth peer name eth0 netns machine"
)
_NETWORK = """
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
_LENGTHEN = """
set -e
ip link set to-server nomaster
ip link add near type veth peer name far
ip link set far master bridge up
ip link set near up
for machine; do ip -n $machine link set eth0 gso_max_segs 1; done
"""
"""Takes the server off the bridge; who passes frames between to-server and near joins them again. The machines named
put one packet in a frame, as a network card would; else a frame between virtual interfaces holds many."""
_NOBODY = "02:00:00:00:00:01"
"""An Ethernet address that no machine has."""


class Machines:
    """The machines of the page, each with a checkout folder of its own.

    Args:
        processes: starts everything.
        folder: empty; becomes the machines' disks.
    """

    def __init__(self, processes: Processes, folder: Path) -> None:
        self._processes = processes
        self._folder = folder
        self._cables: list[Process] = []
        hosts = folder / "hosts"
        lines = [f"{address} {name}.example" for name, address in MACHINES.items()]
        hosts.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]), encoding="utf-8")
        given = [f"{name}={address}" for name, address in MACHINES.items()]
        inside = ["sh", "-c", _NETWORK, "network", str(hosts), *given]
        self._network = processes.start("unshare", *_users(), "--net", "--mount", *inside)
        self._network.line("^ready$")
        for name in MACHINES:
            (folder / name / "certs").mkdir(parents=True)  # what the page has set up by hand
            (folder / name / ".venv").symlink_to(sys.prefix)
            (folder / name / "deploy").symlink_to(ROOT / "deploy")
        (folder / "server" / "certs").rmdir()

    @staticmethod
    def impossible() -> str | None:
        """Say why there can be no such machines here, or None if there can."""
        tools = {tool: shutil.which(tool) or "" for tool in _TOOLS}
        if "" in tools.values():
            return f"needs {', '.join(tools)} to make network namespaces"
        command = [tools["unshare"], *_users(), "--net", "--mount", "sh", "-c", _PROBE]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        return f"this machine forbids to make network namespaces: {made.stderr.strip()}" if made.returncode else None

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

    def certify(self) -> None:
        """Give every machine its certificate, without the page's commands."""
        certs = self["server"] / "certs"
        init(certs, ["server.example"])
        issue(certs, CLIENTS)
        for name in CLIENTS:
            shutil.copytree(certs / name, self[name] / "certs" / name)

    # --- what goes wrong with a network -------------------------------------------------------------------------------

    def lengthen(self, delay_s: float, loss: float = 0.0) -> Process:
        """Put a bad cable between the server and all others; return its process.

        Args:
            delay_s: for each way.
            loss: share of the packets that get lost, either way.
        """
        self.outside("sh", "-c", _LENGTHEN, "lengthen", *(MACHINES if loss else ())).ends(0)
        where = sys.executable, ROOT / "tests" / "integration" / "cable.py", "to-server", "near"
        self._cables.append(self.outside(*where, str(delay_s), str(loss)))
        self._cables[-1].line("^ready$")
        return self._cables[-1]

    def cut(self, name: str) -> None:
        """Pull a machine's cable out."""
        self.outside("ip", "link", "set", f"to-{name}", "down").ends(0)

    def join(self, name: str) -> None:
        """Plug it in again."""
        self.outside("ip", "link", "set", f"to-{name}", "up").ends(0)

    def cut_way(self, source: str, target: str) -> None:
        """Lose all that one machine sends to another, and nothing of what it hears from there."""
        entry = MACHINES[target], "lladdr", _NOBODY, "dev", "eth0", "nud", "permanent"
        self.outside("ip", "-n", source, "neigh", "replace", *entry).ends(0)

    def join_way(self, source: str, target: str) -> None:
        """Let it through again."""
        self.outside("ip", "-n", source, "neigh", "del", MACHINES[target], "dev", "eth0").ends(0)

    def end(self) -> None:
        """Pull down the network; nothing of it remains."""
        for process in (*self._cables, self._network):
            process.end()

    def _enter(self) -> list[str]:
        users = ["--user", "--preserve-credentials"] if os.geteuid() else []
        return ["nsenter", f"--target={self._network.pid}", *users, "--net", "--mount"]


def blocks(said: str) -> list[str]:
    """Return the commands of the page's blocks of which this is said."""
    return [commands for where, commands in BLOCKS if where == said]


def _users() -> list[str]:
    return ["--user", "--map-root-user"] if os.geteuid() else []
