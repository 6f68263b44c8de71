"""Five parties with a table each, for tests: scikit-learn's 1,797 handwritten digits as CSV, and 1,000 for nobody.

The parties are ``parties/p0`` to ``parties/p4``, of 240, 200, 160, 120 and 77 rows; p4 attacks where somebody does. The
rows that nobody trains on are in ``held-out``.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

PARTIES = ("p0", "p1", "p2", "p3", "p4")
HONEST = PARTIES[:4]
ROWS = (240, 200, 160, 120, 77)
HELD_OUT = 1000
FILE = "digits.csv"
L2 = 0.03
PIXELS = tuple(f"pixel_{i}" for i in range(64))
ATTACK = ("foe", "attack.eps=5.0")
"""Kind and parameter of what p4 does: five times the opposite of the others' mean, as far as it can guess that."""

CONFIG = f"""
[federation]
clients = 5
byzantine = 1
seed = {{seed}}
join_timeout_s = 60.0
[task]
kind = "table"
partition = "own"
file = "{FILE}"
target = "digit"
classes = [{", ".join(f'"{digit}"' for digit in range(10))}]
numeric = [{", ".join(f'"{pixel}"' for pixel in PIXELS)}]
clip = 3.0
test_share = 0.1
l2 = {L2}
[strategy]
kind = "byz-vr-marina-pp"
rounds = 80
gamma = 0.6
p = 0.2
cohort = 4
full_cohort = 5
batch = 32
alpha = 2.0
[aggregator]
kind = "rfa"
[evaluation]
every = 40
by = "clients"
"""


@cache
def _digits() -> tuple[Numbers, NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.data, found.target


def _split(seed: int) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Return the rows of each party, and those that nobody trains on."""
    order = np.random.default_rng(seed).permutation(len(_digits()[1]))
    return np.split(order[HELD_OUT:], np.cumsum(ROWS[:-1])), order[:HELD_OUT]


def _write(folder: Path, rows: Sequence[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pixels, digits = _digits()
    lines = [",".join([*PIXELS, "digit"])]
    lines += [",".join(str(int(cell)) for cell in (*pixels[row], digits[row])) for row in rows]
    (folder / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def federation(place: Path, seed: int = 1) -> Path:
    """Write the config and everybody's table; return the path of the config."""
    parts, held_out = _split(seed)
    for name, rows in zip(PARTIES, parts, strict=True):
        _write(place / "parties" / name, rows.tolist())
    _write(place / "held-out", held_out.tolist())
    config = place / "study.toml"
    config.write_text(CONFIG.format(seed=seed), encoding="utf-8")
    return config


def pooled_accuracy(seed: int) -> float:
    """Return the accuracy on the held-out rows of the same model, solved to optimality on the honest parties' rows."""
    from sklearn.linear_model import LogisticRegression

    pixels, digits = _digits()
    parts, held_out = _split(seed)
    train = np.concatenate(parts[: len(HONEST)])
    centre, spread = pixels[train].mean(axis=0), pixels[train].std(axis=0)
    scaled = np.clip((pixels - centre) / np.where(spread > 0, spread, 1.0), -3.0, 3.0)
    model: Any = LogisticRegression(C=1 / (L2 * len(train)), max_iter=2000, tol=1e-6)
    return float(model.fit(scaled[train], digits[train]).score(scaled[held_out], digits[held_out]))
