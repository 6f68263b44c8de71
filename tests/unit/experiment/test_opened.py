"""An experiment opened: by text, by path, and the fingerprint of the code."""

import re
import shutil
from pathlib import Path

import pytest

from experiment import opened as experiment
from experiment.opened import code_fingerprint, from_run_config, open_experiment
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
    with pytest.raises(ConfigError, match="give --config FILE"):
        from_run_config({"config": CUSTOM, "data": str(folder)})


def test_a_config_of_ones_own_may(folder: Path) -> None:
    assert (
        open_experiment(CUSTOM, None, folder).method == from_run_config({"config": str(folder / "custom.toml")}).method
    )
    opened = from_run_config({"config": CUSTOM, "config-dir": str(folder)})
    assert isinstance(opened.method, ByzVRMarinaPP)
    assert opened.method.gamma == 0.5 / 8.0


def test_a_run_config_names_text_or_a_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_text = from_run_config({"config": SMALL, "data": str(folder)})
    by_path = from_run_config({"config": str(folder / "small.toml"), "data": str(folder)})
    assert by_text.config == by_path.config
    monkeypatch.setattr(experiment, "ROOT", folder)
    assert from_run_config({"config": "small.toml", "data": str(folder)}).config == by_text.config


def test_a_run_config_changes_a_file(folder: Path) -> None:
    given = {
        "config": str(folder / "small.toml"),
        "data": str(folder),
        "set": "strategy.rounds=7 'federation.seed = 5'",
    }
    config = from_run_config(given).config
    assert (config.strategy.rounds, config.federation.seed) == (7, 5)
    with pytest.raises(ConfigError, match=r"\[strategy\] round: unknown key"):
        from_run_config(given | {"set": "strategy.round=7"})
    with pytest.raises(ConfigError, match=r"run config: set = \"a='b\": No closing quotation"):
        from_run_config(given | {"set": "a='b"})


def test_where_the_data_are(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's own folder, else the run's, else the environment's."""
    path, nowhere = {"config": str(folder / "small.toml")}, str(tmp_path / "nowhere")
    monkeypatch.setenv("BREAKWATER_DATA", nowhere)
    for run_config, node_config in (({"data": nowhere}, {"data": str(folder)}), ({"data": str(folder)}, {})):
        assert from_run_config(path | run_config, node_config).problem.dim == 2
    with pytest.raises(ConfigError, match="nowhere"):
        from_run_config(path)
    monkeypatch.setenv("BREAKWATER_DATA", str(folder))
    assert from_run_config(path).problem.dim == 2


@pytest.mark.parametrize("run_config", [{}, {"config": ""}, {"data": "x"}])
def test_a_run_config_that_names_no_experiment(run_config: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match='run config: "config" is missing; name an experiment TOML'):
        from_run_config(run_config)


def test_a_path_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match=r'^run config: config = "no/such\.toml": no such file in the bundle; known'):
        from_run_config({"config": "no/such.toml"})


# --- the fingerprint ---


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the fingerprint covers."""
    code_fingerprint()  # that of the checkout itself, kept from now on
    for name in ("foundation", "strategies", "tasks", "experiment", "link", "client"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(experiment, "ROOT", tmp_path)
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
