"""The methods with a vector of every client at the server, over Flower messages, against plain loops, bit for bit.

The run under test goes the whole way but for the network: ServerApp's strategy, codec, ClientApp, coalition, screening.
"""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice

import numpy as np
import pytest

from experiment.config import Config, parse, resolve
from experiment.opened import Experiment
from link import codec
from strategies.method import Vector
from tasks.contract import Problem, Setting, TaskSpec
from tests.local_grid import federation
from tests.reference.compressed_loops import dasha_page, ef21, momenta, rosdhb

DIGITS = """
[federation]
clients = 7
byzantine = 2
seed = 5
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "byz-dasha-page"
rounds = 20
gamma = 0.5
batch = 16
p = 0.3
[compressor]
kind = "rand-k"
ratio = 0.1
"""
TOP_K = ["compressor.kind=top-k", "compressor.ratio=0.1"]
METHODS: dict[str, tuple[Callable[[Experiment], Iterator[Vector]], list[str]]] = {
    "byz-dasha-page": (dasha_page, []),
    # A change of kind and back clears the section, so that p is the default.
    "byz-dasha-page, defaults": (
        dasha_page,
        ["strategy.kind=byz-ef21", "strategy.kind=byz-dasha-page", "strategy.batch=99"],
    ),
    "byz-dasha-page, masked": (dasha_page, ["compressor.kind=masked", "compressor.ratio=0.1"]),
    "byz-ef21": (ef21, ["strategy.kind=byz-ef21", *TOP_K]),
    "byz-ef21-bc": (ef21, ["strategy.kind=byz-ef21-bc", *TOP_K]),
    "byz-ef21-sgdm": (momenta, ["strategy.kind=byz-ef21-sgdm", "strategy.batch=16", *TOP_K]),
    "byz-dm21": (momenta, ["strategy.kind=byz-dm21", "strategy.batch=16", *TOP_K]),
    "byz-vr-dm21": (momenta, ["strategy.kind=byz-dm21", "strategy.batch=16", "strategy.vr=true", *TOP_K]),
    "rosdhb": (rosdhb, ["strategy.kind=rosdhb", "compressor.kind=masked", "compressor.ratio=0.1"]),
    "rosdhb-local": (rosdhb, ["strategy.kind=rosdhb-local", "strategy.batch=16", "strategy.beta=0.8"]),
    "rosdhb-local, steps": (
        rosdhb,
        ["strategy.kind=rosdhb-local", "strategy.batch=16", "strategy.local_steps=3", "strategy.local_gamma=0.1"],
    ),
}
ATTACKS = {
    "honest": ["federation.byzantine=0"],
    "bf": ["attack.kind=bf"],
    "lf": ["attack.kind=lf"],
    "alie": ["attack.kind=alie", "attack.z=1.06"],
    "foe": ["attack.kind=foe", "attack.view=omniscient", "attack.eps=2.0"],
    "silence": ["attack.kind=silence"],
}


@cache
def loaded(task: TaskSpec, setting: Setting) -> Problem:
    return task.load(setting)


def open_experiment(overrides: list[str]) -> Experiment:
    config: Config = parse(DIGITS, overrides)
    problem = loaded(config.task, config.setting(None, None))
    config = resolve(config, problem)
    return Experiment(config, problem)


def models(experiment: Experiment) -> list[Vector]:
    """The models x^1, x^2, ... of a run over Flower messages."""
    grid, strategy = federation(experiment)
    found: list[Vector] = []
    strategy.on_round = lambda record: found.append(strategy.state.x)
    strategy.start(grid, codec.to_arrays(experiment.problem.initial()), experiment.config.strategy.rounds)
    return found


def assert_same_run(experiment: Experiment, loop: Callable[[Experiment], Iterator[Vector]]) -> None:
    ours, rounds = models(experiment), experiment.config.strategy.rounds
    assert len(ours) == rounds
    for k, (got, expected) in enumerate(zip(ours, islice(loop(experiment), rounds), strict=True), start=1):
        assert got.dtype == expected.dtype == experiment.problem.dtype
        assert got.tobytes() == expected.tobytes(), f"x^{k} differs by {np.max(np.abs(got - expected)):.1e}"
    assert not np.array_equal(ours[0], ours[-1])


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("method", METHODS)
def test_digits_run_equals_the_plain_loop(method: str, attack: str) -> None:
    loop, overrides = METHODS[method]
    assert_same_run(open_experiment([*overrides, *ATTACKS[attack]]), loop)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_digits_run_in_double_precision_with_another_rule_equals_the_plain_loop(method: str) -> None:
    loop, overrides = METHODS[method]
    settings = ["task.dtype=float64", "aggregator.kind=cwtm", 'aggregator.pre=["nnm"]', *ATTACKS["alie"]]
    assert_same_run(open_experiment([*overrides, *settings]), loop)


def test_the_coin_of_page_shows_both_sides_in_these_runs() -> None:
    experiment = open_experiment([])
    grid, strategy = federation(experiment)
    kinds: list[str] = []
    strategy.on_round = lambda record: kinds.append(record.kind)
    strategy.start(grid, codec.to_arrays(experiment.problem.initial()), experiment.config.strategy.rounds)
    assert kinds[0] == "start"
    assert set(kinds[1:]) == {"full", "difference"}


@pytest.mark.parametrize("method", ["byz-dasha-page", "byz-ef21-bc", "byz-vr-dm21", "rosdhb", "rosdhb-local, steps"])
def test_digits_run_with_schedules_equals_the_plain_loop(method: str) -> None:
    loop, overrides = METHODS[method]
    settings = ["strategy.rounds=5", 'strategy.gamma={kind="cosine",start=0.5,warmup=2}', *ATTACKS["alie"]]
    if method.startswith("rosdhb-local"):
        settings += ["strategy.local_momentum=0.9", 'strategy.local_schedule={kind="sqrt"}']
    assert_same_run(open_experiment([*overrides, *settings]), loop)
