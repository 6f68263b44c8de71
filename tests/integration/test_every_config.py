"""Every method, with each compressor that a config gives it, over gRPC: to the bits of a run in one process.

The federations are attacked ones of real processes, as the files say, only shorter. What the methods do is tested
elsewhere; here it is that each of them runs over the link, whatever its packets, its worker state and its attackers.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from deploy.local import LocalOptions, run_local
from experiment.config import Config, load
from experiment.opened import open_experiment
from link import codec
from server.monitor.exporters import Monitoring
from tests.integration.processes import ROOT, rounds_of
from tests.local_grid import federation
from tests.saved import x_of
from tests.shortened import schedule_within

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
    return load(path, [f"strategy.rounds={ROUNDS}", f"evaluation.every={ROUNDS}", *schedule_within(path), *changes])


def in_one_process(config: Config) -> np.ndarray:
    """The same run without processes, messages or a network."""
    experiment = open_experiment(config.to_toml(), None, None)
    grid, strategy = federation(experiment)
    strategy.start(grid, codec.to_arrays(experiment.problem.initial()), ROUNDS)
    model: np.ndarray = strategy.state.x
    return model


def by_messages() -> dict[tuple[str, str], Path]:
    """Return a config for each method and compressor; others differ in what only one end computes."""
    loaded = [(load(path), path) for path in RUNNABLE]
    return {(config.strategy.kind, config.compressor.kind): path for config, path in loaded}


@pytest.mark.parametrize("path", by_messages().values(), ids=lambda p: p.stem)
def test_every_method_runs_over_the_link_under_the_attack_of_its_config(path: Path, tmp_path: Path) -> None:
    attacked = () if load(path).attack is not None else ("federation.byzantine=1", "attack.kind=bf")
    config, out = shortened(path, *attacked), tmp_path / "run"
    assert run_local(LocalOptions(config=config, out=out, monitoring=Monitoring(quiet=True, pictures=False))) == 0
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (summary["status"], summary["rounds"], summary["rejected"]) == ("finished", ROUNDS, {})
    assert all(line["accepted"] == line["cohort"] for line in rounds_of(out))
    assert x_of(out).tobytes() == in_one_process(config).tobytes()
