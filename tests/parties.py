"""A small federation whose clients have their own data, for tests: a task file, a config, and a folder for each."""

from pathlib import Path

import numpy as np

TASK = '''
"""Two classes of points in the plane, each client's in points.csv."""
from pathlib import Path

import numpy as np
from torch import nn


class Points:
    test_share = {share}
    dtype = "float64"

    def __init__(self, inputs=3):
        self.inputs = inputs

    def model(self):
        return nn.Linear(self.inputs, 2)

    def local_data(self, folder):
        return self.read(folder / "points.csv")

    def test_data(self, folder):
        return None if folder is None else self.read(folder / "points.csv")

    def train_data(self):
        return self.read(Path(__file__).parent / "points.csv")

    def read(self, path):
        table = np.loadtxt(path, delimiter=",", ndmin=2)
        return table[:, :-1], table[:, -1].astype(int)
'''

CONFIG = """
[federation]
clients = {n}
byzantine = {f}
seed = 3
join_timeout_s = 30.0
[task]
kind = "custom"
path = "points.py:Points"
partition = "own"
[strategy]
kind = "byz-vr-marina-pp"
rounds = 6
gamma = 0.5
p = 0.5
cohort = 3
batch = 8
clip = false
[aggregator]
kind = "cm"
[evaluation]
every = 3
"""


def points(rows: int, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return rows of three coordinates and a class that depends on them."""
    at = np.random.default_rng(seed).normal(size=(rows, 3))
    table: np.ndarray[tuple[int, int], np.dtype[np.float64]] = np.column_stack([at, at @ [1.0, -2.0, 0.5] > 0])
    return table


def write(folder: Path, rows: int, seed: int) -> Path:
    """Write a party's data into its folder; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savetxt(folder / "points.csv", points(rows, seed), delimiter=",")
    return folder


def federation(place: Path, n: int = 4, f: int = 1, share: float = 0.0, extra: str = "") -> Path:
    """Write task file, config, server data and a folder for each of n parties; return the path of the config.

    The parties are ``parties/p0`` and so on, with 20, 25, 30, ... rows; the server's test set is in ``server``.
    """
    (place / "points.py").write_text(TASK.replace("{share}", str(share)))
    config = place / "study.toml"
    config.write_text(CONFIG.replace("{n}", str(n)).replace("{f}", str(f)) + extra)
    for i in range(n):
        write(place / "parties" / f"p{i}", 20 + 5 * i, i)
    write(place / "server", 50, 99)
    return config
