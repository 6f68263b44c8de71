"""Whole runs on tables in one process: the config, the model's file, predictions; and four real hospitals."""

from pathlib import Path
from typing import Any

import numpy as np

import breakwater as bw
from tests.unit.tasks.tables import load, rows, task, write

CONFIG = """
[federation]
clients = 4
byzantine = 1
[task]
kind = "table"
file = "t.csv"
target = "outcome"
classes = ["no", "yes"]
numeric = ["age", "bmi"]
categorical = { sex = ["f", "m"] }
[strategy]
kind = "byz-vr-marina-pp"
rounds = 60
gamma = "10/L"
batch = 16
cohort = 4
[attack]
kind = "bf"
"""
HEART = """
file = "heart.csv"
target = "num"
classes = { healthy = ["0"], ill = ["1", "2", "3", "4"] }
numeric = ["age", "trestbps", "chol", "thalach", "oldpeak"]
[task.categorical]
sex = ["0", "1"]
cp = ["1", "2", "3", "4"]
fbs = ["0", "1"]
restecg = ["0", "1", "2"]
exang = ["0", "1"]
slope = ["1", "2", "3"]
ca = ["0", "1", "2", "3"]
thal = ["3", "6", "7"]
"""
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")


def run(folder: Path, text: str, **overrides: Any) -> bw.Run:
    (folder / "run.toml").write_text(text, encoding="utf-8")
    return bw.run(
        folder / "run.toml", overrides=overrides, out=folder / "run", data=folder, processes=False, quiet=True
    )


def test_a_run_on_a_table_leaves_a_model_that_predicts(tmp_path: Path) -> None:
    write(tmp_path, rows(400))
    found = run(tmp_path, CONFIG)
    assert found.accuracy is not None
    assert found.accuracy > 0.75
    assert bw.load_config(found.folder / "config.toml").task == task()
    model = bw.load_model(found.folder)
    assert model.x.tobytes() == found.model.tobytes()
    predicted = model.predict(write(tmp_path, rows(300, seed=7), "new.csv"))
    assert predicted.accuracy is not None
    assert predicted.accuracy > 0.75
    problem = load(tmp_path, task(), 4, byzantine=1)
    assert problem.evaluate(found.model).accuracy == found.accuracy


def test_four_hospitals_pooled_and_split_at_random(tmp_path: Path, data_dir: Path) -> None:
    tables = [(data_dir / "heart" / name / "heart.csv").read_text().splitlines() for name in HOSPITALS]
    lines = [line for table in tables for line in table[1:]]
    (tmp_path / "heart.csv").write_text("\n".join([tables[0][0], *lines]))
    before, after = CONFIG.split('file = "t.csv"')[0], CONFIG[CONFIG.index("[strategy]") :]
    found = run(tmp_path, before + HEART + after, **{"strategy.rounds": 150, "strategy.gamma": "20/L"})
    assert found.accuracy is not None
    assert 0.77 < found.accuracy < 0.9, "logistic regression reaches 82 % on a common quarter held back"
    model = bw.load_model(found.folder)
    shares = [model.predict(data_dir / "heart" / name / "heart.csv").accuracy for name in HOSPITALS]
    assert all(share is not None and share > 0.65 for share in shares), shares
    assert np.isfinite(found.model).all()
