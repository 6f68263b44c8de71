"""Byz-VR-MARINA-PP over Flower messages against a plain loop, bit for bit; then against the published rates.

The run under test goes the whole way but for the network: ServerApp's strategy, codec, ClientApp, coalition, screening.
"""

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from examples.plain_loop import trajectory
from experiment.config import Config, parse, resolve
from experiment.opened import Experiment
from link import codec
from strategies.method import Vector
from strategies.strategy import RoundRecord
from strategies.vectors import norm
from tasks.contract import Problem, Setting, TaskSpec
from tests.local_grid import federation

DIGITS = """
[federation]
clients = 7
byzantine = 2
seed = 5
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "byz-vr-marina-pp"
rounds = 25
gamma = 0.5
p = 0.2
cohort = 4
batch = 16
alpha = 2.0
"""
A9A = """
[federation]
clients = 20
byzantine = 5
seed = 1
[task]
kind = "logistic"
[strategy]
kind = "byz-vr-marina-pp"
rounds = 60
gamma = "0.2/L"
p = 0.1
cohort = 4
batch = 32
"""
ATTACKS = {
    "honest": [],
    "bf": ["attack.kind=bf"],
    "lf": ["attack.kind=lf"],
    "alie": ["attack.kind=alie", "attack.view=omniscient", "attack.z=1.06"],
    "alie of a coalition": ["attack.kind=alie", "attack.z=1.06"],
    "ipm": ["attack.kind=ipm", "attack.view=omniscient"],
    "foe": ["attack.kind=foe", "attack.view=omniscient"],
    "shb": ["attack.kind=shb"],
    "big": ["attack.kind=big"],
    "nan": ["attack.kind=nan"],
    "gaussian": ["attack.kind=gaussian"],
    "silence": ["attack.kind=silence"],
}
RAND_K = ["compressor.kind=rand-k", "compressor.ratio=0.1"]
COMPRESSORS = {"identity": [], "rand-k": RAND_K}
RULES = {
    "cwtm": ["aggregator.kind=cwtm"],
    "rfa": ["aggregator.kind=rfa"],
    "krum": ["aggregator.kind=krum", "strategy.cohort=5"],
    "nnm + cm": ["aggregator.kind=cm", 'aggregator.pre=["nnm"]'],
    "bucketing + cm": [
        "aggregator.kind=cm",
        'aggregator.pre=["bucketing"]',
        "federation.byzantine=1",
        "strategy.cohort=5",
    ],
}


@cache
def loaded(task: TaskSpec, setting: Setting) -> Problem:
    return task.load(setting)


def open_experiment(text: str, overrides: list[str], data_dir: Path | None = None) -> Experiment:
    config: Config = parse(text, overrides)
    problem = loaded(config.task, config.setting(data_dir, None))
    config = resolve(config, problem)
    return Experiment(config, problem)


def models(experiment: Experiment) -> list[Vector]:
    """The models x^1, x^2, ... of a run over Flower messages."""
    grid, strategy = federation(experiment)
    found: list[Vector] = []
    strategy.on_round = lambda record: found.append(strategy.state.x)
    strategy.start(grid, codec.to_arrays(experiment.problem.initial()), experiment.config.strategy.rounds)
    return found


def assert_same_run(experiment: Experiment) -> None:
    ours = models(experiment)
    assert len(ours) == experiment.config.strategy.rounds
    for k, (got, expected) in enumerate(zip(ours, trajectory(experiment), strict=True), start=1):
        assert got.dtype == expected.dtype == experiment.problem.dtype
        assert got.tobytes() == expected.tobytes(), f"x^{k} differs by {np.max(np.abs(got - expected)):.1e}"
    assert not np.array_equal(ours[0], ours[-1])


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_digits_run_equals_the_plain_loop(attack: str, compressor: str) -> None:
    overrides = [*ATTACKS[attack], *COMPRESSORS[compressor]]
    if attack == "honest":
        overrides.append("federation.byzantine=0")
    assert_same_run(open_experiment(DIGITS, overrides))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("attack", ["alie", "bf"])
def test_digits_run_with_another_rule_equals_the_plain_loop(attack: str, rule: str) -> None:
    assert_same_run(open_experiment(DIGITS, [*ATTACKS[attack], *RULES[rule], *RAND_K]))


def test_digits_run_in_double_precision_equals_the_plain_loop() -> None:
    assert_same_run(open_experiment(DIGITS, [*ATTACKS["alie"], "task.dtype=float64"]))


def test_digits_run_without_clipping_equals_the_plain_loop() -> None:
    assert_same_run(open_experiment(DIGITS, [*ATTACKS["bf"], "strategy.clip=false"]))


def test_clipping_is_at_work_in_these_runs() -> None:
    clipped, plain = (
        models(open_experiment(DIGITS, [*ATTACKS["big"], f"strategy.clip={clip}"]))[-1] for clip in ("true", "false")
    )
    assert not np.array_equal(clipped, plain)


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("attack", ["honest", "bf", "lf", "alie", "ipm", "shb", "big", "nan"])
def test_a9a_run_equals_the_plain_loop(attack: str, compressor: str, data_dir: Path) -> None:
    assert_same_run(open_experiment(A9A, [*ATTACKS[attack], *COMPRESSORS[compressor]], data_dir))


@pytest.mark.parametrize("size", [1, 7, 8, 1000, 4097])
@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1.0, 1e200])
def test_the_norm_that_both_loops_share(scale: float, size: int) -> None:
    v = scale * np.random.default_rng(size).normal(size=size)
    unit = math.sqrt(math.fsum((float(c) / scale) ** 2 for c in v))
    assert norm(v) == pytest.approx(scale * unit, rel=1e-14)


# --- the published experiment: a9a, 600 rounds; an independent loop in double precision ends far below the bounds ---


def runs(attacks: list[str]) -> list[tuple[str, int]]:
    """Every attack with one seed, the two subtlest with two more.

    One seed in 25 or so has no full round for 60 rounds on end, and rand-k then ends near 1e-8; these are not of them.
    """
    return [(attack, seed) for seed in (1, 2, 3) for attack in attacks if seed == 1 or attack in ("alie", "shb")]


def gaps(overrides: list[str], data_dir: Path, *, seed: int, every: int = 600) -> list[float]:
    """f(x) - f* at the evaluations of a run of 600 rounds."""
    settings = [f"federation.seed={seed}", "strategy.rounds=600", f"evaluation.every={every}"]
    experiment = open_experiment(A9A, [*settings, *overrides], data_dir)
    grid, strategy = federation(experiment)
    found: list[float] = []

    def keep(record: RoundRecord) -> None:
        if record.evaluation is not None:
            assert record.evaluation.gap is not None
            found.append(record.evaluation.gap)

    strategy.on_round = keep
    strategy.start(grid, codec.to_arrays(experiment.problem.initial()), 600)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "seed"), runs(["bf", "lf", "alie", "ipm", "shb"]))
def test_converges_under_attack(attack: str, seed: int, data_dir: Path) -> None:
    assert gaps(ATTACKS[attack], data_dir, seed=seed)[-1] <= 1e-9


@pytest.mark.slow
def test_comes_close_under_big(data_dir: Path) -> None:
    assert gaps(ATTACKS["big"], data_dir, seed=1)[-1] <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "seed"), runs(["bf", "lf", "alie", "shb"]))
def test_converges_with_compression_under_attack(attack: str, seed: int, data_dir: Path) -> None:
    compressed = ["compressor.kind=rand-k", "compressor.k=12"]
    assert gaps([*ATTACKS[attack], *compressed], data_dir, seed=seed)[-1] <= 1e-8


@pytest.mark.slow
def test_without_clipping_shift_back_wins(data_dir: Path) -> None:
    without = gaps([*ATTACKS["shb"], "strategy.clip=false"], data_dir, seed=1, every=50)
    assert not max(without) <= 1e2
