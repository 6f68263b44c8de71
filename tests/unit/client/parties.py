"""A small federation of parties with data of their own: a task file, a config, a folder for each party; and a live run.

Every row has a text that no gradient needs; nothing that a party sends or writes down may hold it.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.preparation import PreparationOptions
from client.process import ClientOptions, run_client
from experiment.config import load
from link.grid import StreamGrid
from server import process
from server.link import open_link
from server.monitor.exporters import Monitoring
from server.process import ServerOptions, serve

MARKER = "MARKER-HIV-positive"
NAMES = ("alice", "bob", "carol")
TASK = """
import numpy as np
from torch import nn

class Task:
    test_share = 0.2
    def local_data(self, folder):
        rows = [line.split(",") for line in (folder / "rows.csv").read_text().splitlines()]
        numbers = np.array([row[:4] for row in rows], "float32")
        return numbers[:, :3], numbers[:, 3].astype("int64")
    def test_data(self, folder):
        x = np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
        return x, (x.sum(axis=1) > 0).astype("int64")
    def model(self):
        return nn.Linear(3, 2)
    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)
"""
CONFIG = """
[federation]
clients = 3
byzantine = 1
[task]
kind = "custom"
path = "task.py:Task"
partition = "own"
[strategy]
kind = "byz-vr-marina-pp"
rounds = 6
gamma = 0.1
batch = 8
cohort = 2
alpha = 2.0
[compressor]
kind = "rand-k"
ratio = 0.5
[evaluation]
every = 3
"""


def write_rows(folder: Path, seed: int, rows: int = 30) -> None:
    """Give a party its data."""
    folder.mkdir(exist_ok=True)
    x = np.random.default_rng(seed).normal(size=(rows, 3))
    lines = [",".join(f"{value:.6f}" for value in row) + f",{int(row.sum() > 0)},{MARKER}" for row in x]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")


def study(folder: Path) -> Path:
    """Write task, config and the data of all parties; return the config."""
    (folder / "task.py").write_text(TASK)
    (folder / "study.toml").write_text(CONFIG)
    for seed, name in enumerate(NAMES):
        write_rows(folder / name, seed, rows=30 + 5 * seed)
    return folder / "study.toml"


@dataclass
class Run:
    """A run that is over.

    Args:
        out: the run folder.
        grid: the server's.
        reasons: what each client returned, or what it raised.
    """

    out: Path
    grid: StreamGrid
    reasons: dict[str, Any] = field(default_factory=dict)


def options_of(config: Path, **given: Any) -> PreparationOptions:
    """Return the options of a client that does not join."""
    return PreparationOptions(config=config, config_dir=config.parent, **given)


def run_live(config: Path, monkeypatch: pytest.MonkeyPatch, own: Callable[[str], dict[str, Any]]) -> Run:
    """Run server and clients over the live link; return what is left.

    Args:
        config: of ``study``.
        monkeypatch: to see the server's grid.
        own: what else the options of a client hold, by its name.
    """
    grids: list[StreamGrid] = []

    def opened(*given: Any) -> StreamGrid:
        grids.append(open_link(*given))
        return grids[-1]

    monkeypatch.setattr(process, "open_link", opened)
    run = Run(config.parent / "run", None, {})  # type: ignore[arg-type]  # it is known below
    threads = []

    def take_part(name: str, address: str) -> None:
        given = {"config": config, "config_dir": config.parent, "data": config.parent / name, **own(name)}
        try:
            run.reasons[name] = run_client(ClientOptions(connect=address, name=name, **given))
        except Exception as error:
            run.reasons[name] = error

    def join(address: str) -> None:
        for name in NAMES:
            threads.append(threading.Thread(target=take_part, args=(name, address), daemon=True))
            threads[-1].start()

    options = {"config_dir": config.parent, "monitoring": Monitoring(quiet=True)}
    serve(ServerOptions(config=load(config), listen="127.0.0.1:0", out=run.out, **options), join)  # type: ignore[arg-type]
    for thread in threads:
        thread.join(30)
    (run.grid,) = grids
    return run
