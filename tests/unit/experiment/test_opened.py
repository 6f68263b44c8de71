"""An experiment opened: by text, by path, and the fingerprint of the code."""

import re
import shutil
from pathlib import Path

import pytest

from experiment.code import code_fingerprint
from experiment.config import load
from experiment.opened import open_config, open_experiment
from foundation import origin
from foundation.errors import ConfigError
from strategies.byz_vr_marina_pp import ByzVRMarinaPP

ROOT = Path(__file__).parents[3]
SMALL = """
[federation]
clients = 4
[task]
kind = "logistic"
data = "set"
[strategy]
kind = "byz-vr-marina-pp"
rounds = 3
gamma = "0.5/L"
p = 0.5
cohort = 2
batch = 1
"""
CUSTOM = SMALL.replace('kind = "logistic"\ndata = "set"', 'kind = "custom"\npath = "own.py:Own"')
OWN = """
import numpy as np

from strategies.method import Evaluation


class Own:
    dim, dtype, smoothness, optimum, samples = 2, np.dtype("f8"), 8.0, None, 1

    def load(self, setting):
        return self

    def initial(self):
        return np.zeros(2)

    def oracle(self, worker, *, flipped=False):
        return self

    def full_gradient(self, x):
        return x.copy()

    def minibatch_gradients(self, points, batch, rng):
        return [x.copy() for x in points]

    def evaluate(self, x):
        return Evaluation(loss=0.0, accuracy=1.0)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set").write_text("+1 1:3 2:4\n-1 1:1\n+1 2:2\n-1 1:2 2:1\n")
    (tmp_path / "small.toml").write_text(SMALL)
    (tmp_path / "custom.toml").write_text(CUSTOM)
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def test_an_experiment_is_resolved(folder: Path) -> None:
    opened = open_experiment(SMALL, folder, None)
    smoothness = opened.problem.smoothness
    assert smoothness is not None
    assert opened.problem.dim == 2
    assert isinstance(opened.method, ByzVRMarinaPP)
    assert opened.method.gamma == pytest.approx(0.5 / smoothness)
    assert opened.method.alpha == pytest.approx(2 * smoothness)
    assert opened.config.method == opened.method


def test_an_experiment_is_opened_once(folder: Path) -> None:
    assert open_experiment(SMALL, folder, None) is open_experiment(SMALL, folder, None)
    assert open_experiment(SMALL + "\n", folder, None) is not open_experiment(SMALL, folder, None)


def test_a_resolved_config_opens_to_the_same_numbers(folder: Path) -> None:
    opened = open_experiment(SMALL, folder, None)
    again = open_experiment(opened.config.to_toml(), folder, None)
    assert again.config == opened.config
    assert again.method == opened.method


def test_data_that_are_not_there(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r'^\[task\] .*"set".*--data'):
        open_experiment(SMALL, None, None)
    with pytest.raises(ConfigError, match=r'^\[task\] .*"set"'):
        open_experiment(SMALL, folder / "elsewhere", None)


def test_a_config_over_the_network_names_no_code_to_run(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r'\[task\] kind = "custom" \(path = "own\.py:Own"\).*give --config FILE'):
        open_experiment(CUSTOM, folder, None)


def test_a_config_of_ones_own_may(folder: Path) -> None:
    opened = open_config(load(folder / "custom.toml"), None, folder)
    assert isinstance(opened.method, ByzVRMarinaPP)
    assert opened.method.gamma == 0.5 / 8.0
    assert open_experiment(CUSTOM, None, folder).method == opened.method


# --- the fingerprint ---


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the fingerprint covers."""
    code_fingerprint()  # that of the checkout itself, kept from now on
    for name in ("foundation", "strategies", "tasks", "experiment", "link", "client"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    monkeypatch.setattr(origin, "manifest", lambda: None)
    return tmp_path


def fingerprint() -> str:
    return code_fingerprint.__wrapped__()


def test_the_same_code_elsewhere_has_the_same_fingerprint(checkout: Path) -> None:
    assert fingerprint() == code_fingerprint()
    assert re.fullmatch(r"[0-9a-f]{12}", fingerprint())
    (checkout / "tasks" / "notes.txt").write_text("no code")
    assert fingerprint() == code_fingerprint()


@pytest.mark.parametrize("file", ["strategies/clipping.py", "tasks/partition.py", "link/codec.py", "client/worker.py"])
def test_other_code_has_another_fingerprint(checkout: Path, file: str) -> None:
    path = checkout / file
    path.write_text(path.read_text() + "\n")
    assert fingerprint() != code_fingerprint()


def test_another_file_gives_another_fingerprint(checkout: Path) -> None:
    (checkout / "strategies" / "more.py").write_text("")
    assert fingerprint() != code_fingerprint()
