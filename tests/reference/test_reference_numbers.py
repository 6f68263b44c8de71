"""DeMoA and Byz-NSGDM on a9a against an independent double-precision loop: traces to the digits, noise floors in kind.

n = 20 of which the last 5 are Byzantine, every client holds all rows, l2 = 0.01, f(x^k) - f* at k = 150 and 300. The
loop draws other minibatches and cohorts, so floors are compared as geometric means of three seeds.
``python -m benchmarks.reference_numbers`` has all methods, rules and attacks, and 600 rounds.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reference_numbers import ATTACKS
from experiment.config import parse, resolve
from experiment.opened import Experiment
from link import codec
from strategies.strategy import RoundRecord
from tasks.contract import Problem, Setting, TaskSpec
from tests.local_grid import federation

pytestmark = pytest.mark.slow

A9A = """
[federation]
clients = 20
byzantine = 5
[task]
kind = "logistic"
[strategy]
rounds = 300
METHOD
[evaluation]
every = 150
"""
DEMOA = 'kind = "demoa"\ngamma = "0.2/L"\nalpha = 0.5\ncohort = 4'
NSGDM = 'kind = "byz-nsgdm"\ngamma = 0.2'
NNM = 'aggregator.pre=["nnm"]'
Gaps = tuple[float, float]


@cache
def loaded(task: TaskSpec, setting: Setting) -> Problem:
    return task.load(setting)


def gaps(data_dir: Path, method: str, *overrides: str) -> Gaps:
    """f(x^k) - f* at k = 150 and 300 of a run over Flower messages."""
    config = parse(A9A.replace("METHOD", method), overrides)
    problem = loaded(config.task, config.setting(data_dir, None))
    config = resolve(config, problem)
    grid, strategy = federation(Experiment(config, problem))
    found: dict[int, float] = {}

    def on_round(record: RoundRecord) -> None:
        if record.evaluation is not None and record.evaluation.gap is not None:
            found[record.round] = record.evaluation.gap

    strategy.on_round = on_round
    strategy.start(grid, codec.to_arrays(problem.initial()), 300)
    return found[150], found[300]


def floors(data_dir: Path, method: str, *overrides: str) -> list[float]:
    """The geometric means over three seeds."""
    runs = np.array([gaps(data_dir, method, *overrides, f"federation.seed={seed}") for seed in range(3)])
    means: list[float] = np.exp(np.log(runs).mean(axis=0)).tolist()
    return means


@pytest.mark.parametrize("case", [("cm", "bf"), ("rfa", "alie")], ids=str)
def test_byz_nsgdm_with_exact_gradients_agrees_to_the_digits(data_dir: Path, case: tuple[str, str]) -> None:
    # All honest rows are equal, so no attack has any effect.
    rule, attack = case
    found = gaps(data_dir, NSGDM, NNM, f"aggregator.kind={rule}", *ATTACKS[attack])
    assert [f"{gap:.5e}" for gap in found] == ["1.04818e-05", "6.27104e-06"]


@pytest.mark.parametrize(
    ("stale", "attack", "expected"), [("decay", "bf", 1e-7), ("decay", "alie", 6e-8), ("hold", "shb", 4e-9)]
)
def test_demoa_with_exact_gradients_converges_as_fast(data_dir: Path, stale: str, attack: str, expected: float) -> None:
    assert gaps(data_dir, DEMOA, f"strategy.stale={stale}", *ATTACKS[attack])[1] < 10 * expected


@pytest.mark.parametrize(
    ("method", "rule", "attack", "expected"),
    [
        ("decay", "cm", "na", 3e-4),
        ("decay", "rfa", "shb", 4e-4),
        ("hold", "rfa", "lf", 2e-3),
        ("nsgdm", "cm", "lf", 1e-4),
    ],
)
def test_noise_floors_are_those_of_the_independent_loop(
    data_dir: Path, method: str, rule: str, attack: str, expected: float
) -> None:
    text, setting = (NSGDM, NNM) if method == "nsgdm" else (DEMOA, f"strategy.stale={method}")
    found = floors(data_dir, text, setting, "strategy.batch=32", f"aggregator.kind={rule}", *ATTACKS[attack])
    assert expected / 3 <= found[1] <= 3 * expected
