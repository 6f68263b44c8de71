"""How long a federation on one machine takes to be up: from the command to all clients joined.

Ours is ``breakwater run``, which forks every process from one that has imported what they need. The peer is the plain
way, the same server and the same clients started one by one by hand, each importing everything for itself.

    python -m benchmarks.startup [--json FILE] [--clients N] [--quick]
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bench import Result, arguments, publish

EXPERIMENT = """
[federation]
clients = {clients}
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "robust-sgd"
rounds = 1
gamma = 0.1
"""
BREAKWATER = [sys.executable, "-m", "deploy.cli"]


def _start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [*BREAKWATER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )


def _until(process: subprocess.Popen[str], words: str) -> str:
    """Read lines until one holds ``words``; return it."""
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return line
    raise RuntimeError(f"{process.args!r} ended without saying {words!r}")


def forked(config: Path, out: Path) -> float:
    """Return the seconds that ``breakwater run`` needs until all clients have joined."""
    began = time.perf_counter()
    run = _start("run", str(config), "--out", str(out))
    _until(run, "clients joined")
    elapsed = time.perf_counter() - began
    run.communicate()
    return elapsed


def one_by_one(config: Path, out: Path, clients: int) -> float:
    """Return the seconds that separately started processes need until all clients have joined."""
    began = time.perf_counter()
    server = _start("server", str(config), "--listen", "127.0.0.1:0", "--out", str(out))
    address = _until(server, "listening on").split()[-1]
    started: Sequence[subprocess.Popen[str]] = [
        _start("client", "--connect", address, "--name", f"client-{i}") for i in range(clients)
    ]
    _until(server, "clients joined")
    elapsed = time.perf_counter() - began
    for process in (server, *started):
        process.communicate()
    return elapsed


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "", rounds=3)
    parser.add_argument("--clients", type=int, default=20, help="clients to start (default: %(default)s)")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    ours, peers = [], []
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "startup.toml"
        config.write_text(EXPERIMENT.format(clients=options.clients), encoding="utf-8")
        for i in range(rounds):  # in turns, so that both see the same machine
            ours.append(forked(config, Path(folder) / f"forked-{i}"))
            peers.append(one_by_one(config, Path(folder) / f"one-by-one-{i}", options.clients))
    value, peer_value = min(ours), min(peers)
    result = Result(
        name=f"{options.clients} clients up and joined",
        value=value,
        unit="s",
        peer="the same processes started one by one",
        peer_value=peer_value,
        ratio=peer_value / value,
    )
    publish([result], options.json)


if __name__ == "__main__":
    main()
