"""Every config that ships, with real processes over gRPC: honest and attacked, and to the bits of a run in one process.

The federations are as the files say, only shorter. What the methods do is tested elsewhere; here it is that each of
them runs over the link, whatever its packets, its worker state and its attackers.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from deploy.local import LocalOptions, run_local
from experiment.config import Config, load
from experiment.opened import open_experiment
from link import codec
from tests.integration.processes import ROOT, rounds_of
from tests.local_grid import federation
from tests.saved import x_of

pytestmark = pytest.mark.slow

ROUNDS = 6
CONFIGS = sorted((ROOT / "deploy" / "configs").glob("*.toml"))
NEEDS_DATA = {"a9a", "cifar10", "mnist-cnn", "mnist-mlp", "mnist-resnet8", "rosdhb-mnist"}
"""Configs whose data may not be there; the tests of their tasks and results run them."""
NEEDS_TORCH = {"custom"}
A_HUNDRED_CLIENTS = {"simulation"}
"""tests/flower runs it in the runtime that it is for."""
RUNNABLE = [path for path in CONFIGS if path.stem not in NEEDS_DATA | NEEDS_TORCH | A_HUNDRED_CLIENTS]


def shortened(path: Path, *changes: str) -> Config:
    return load(path, [f"strategy.rounds={ROUNDS}", f"evaluation.every={ROUNDS}", *changes])


def in_one_process(config: Config) -> np.ndarray:
    """The same run without processes, messages or a network."""
    experiment = open_experiment(config.to_toml(), None, None)
    grid, strategy = federation(experiment)
    strategy.start(grid, codec.to_arrays(experiment.problem.initial()), ROUNDS)
    model: np.ndarray = strategy.state.x
    return model


@pytest.mark.parametrize("path", {load(path).strategy.kind: path for path in RUNNABLE}.values(), ids=lambda p: p.stem)
def test_every_method_runs_over_the_link_with_nobody_attacking(path: Path, tmp_path: Path) -> None:
    runs(shortened(path, "attack.kind=none", "federation.byzantine=0"), tmp_path / "run")


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda p: p.stem)
def test_every_config_runs_over_the_link_under_its_attack(path: Path, tmp_path: Path) -> None:
    attacked = () if load(path).attack is not None else ("federation.byzantine=1", "attack.kind=bf")
    runs(shortened(path, *attacked), tmp_path / "run")


def runs(config: Config, out: Path) -> None:
    assert run_local(LocalOptions(config=config, out=out)) == 0
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (summary["status"], summary["rounds"], summary["rejected"]) == ("finished", ROUNDS, {})
    assert all(line["accepted"] == line["cohort"] for line in rounds_of(out))
    assert x_of(out).tobytes() == in_one_process(config).tobytes()
