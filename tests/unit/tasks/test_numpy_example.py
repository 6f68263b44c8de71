"""The example of a task without torch: it learns, passes the trial of custom tasks, and docs/tasks.md shows it."""

from pathlib import Path

import numpy as np

from tasks.contract import Setting
from tasks.custom import CustomTask
from tasks.trial import Demands
from tasks.tryout import try_out

ROOT = Path(__file__).parents[3]


def test_the_documented_example_learns() -> None:
    task = CustomTask(path="my_numpy_task.py:LeastSquares", options={"features": 5})
    setting = Setting(clients=6, byzantine=1, seed=1, config_dir=ROOT / "examples")
    problem = task.load(setting)
    try_out(task, setting, Demands(workers=range(6), batches=(8, 0)), problem)
    x, rng = problem.initial(), np.random.default_rng(0)
    start = problem.evaluate(x).loss
    for _ in range(200):
        x = x - 0.1 * np.mean([problem.oracle(i).minibatch_gradients([x], 16, rng)[0] for i in range(5)], axis=0)
    assert problem.evaluate(x).loss < 0.01 < 0.5 < start


def test_the_documentation_shows_the_example_as_it_is() -> None:
    example = (ROOT / "examples" / "my_numpy_task.py").read_text(encoding="utf-8").split('"""\n', 1)[1].strip()
    assert example in (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
