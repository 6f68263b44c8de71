"""Federations of tables that each client has alone: over the link, in one process, and as one shared table."""

from pathlib import Path

import numpy as np

import breakwater as bw
from experiment.config import Config, load
from server.run_folder.reader import read_summary
from tasks.partition import split
from tests.integration.test_own_data import folders_of, in_process, over_link
from tests.unit.tasks.tables import rows, write

CONFIG = """
[federation]
clients = 4
seed = 3
join_timeout_s = 30.0
[task]
kind = "table"
partition = "own"
file = "t.csv"
target = "outcome"
classes = ["no", "yes"]
numeric = ["age", "bmi"]
categorical = { sex = ["f", "m"] }
[strategy]
kind = "byz-vr-marina-pp"
rounds = 12
gamma = "10/L"
batch = 8
cohort = 3
[evaluation]
every = 6
"""


def config(folder: Path, **overrides: object) -> Config:
    (folder / "study.toml").write_text(CONFIG, encoding="utf-8")
    (folder / "server").mkdir(exist_ok=True)
    return load(folder / "study.toml", {key.replace("__", "."): value for key, value in overrides.items()})


def test_over_the_link_as_in_one_process_whatever_the_parties_sizes(tmp_path: Path) -> None:
    """Scaling, and m in the default of p, follow from what each party declares of its own rows."""
    study = config(tmp_path)
    for name, m in zip("abcd", (200, 90, 45, 30), strict=True):
        write(tmp_path / "parties" / name, rows(m, seed=m))
    alone = in_process(study, tmp_path / "alone", tmp_path / "parties")
    ended = over_link(tmp_path / "study.toml", tmp_path / "link", folders_of(tmp_path))
    assert set(ended.values()) == {"the run is over"}
    for out in ("alone", "link"):
        assert (read_summary(tmp_path / out) or {})["task"]["samples"] == 54  # the median of 160, 72, 36 and 24
    files = [tmp_path / out / "model.safetensors" for out in ("alone", "link")]
    assert files[0].read_bytes() == files[1].read_bytes()
    predicted = bw.load_model(files[1]).predict(write(tmp_path, rows(200, seed=8), "new.csv"))
    assert np.array_equal(bw.load_model(files[0]).x, alone)
    assert predicted.accuracy is not None
    assert predicted.accuracy > 0.7


def test_own_tables_give_the_trajectory_of_the_same_rows_of_a_shared_one(tmp_path: Path) -> None:
    lines = rows(240, seed=5)
    write(tmp_path / "server", lines)
    labels = np.array([line.endswith("yes") for line in lines])
    for worker, part in enumerate(split("label", labels, 4, 3)):
        write(tmp_path / "parties" / f"p{worker}", [lines[row] for row in part])
    attacked = {"federation__byzantine": 1, "attack__kind": "lf", "strategy__p": 0.3}
    own = in_process(config(tmp_path, **attacked), tmp_path / "own", tmp_path / "parties")
    shared = config(tmp_path, **attacked, task__partition="label")
    assert np.array_equal(own, in_process(shared, tmp_path / "shared", tmp_path / "server"))
