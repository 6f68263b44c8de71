"""The relatives of Byz-VR-MARINA-PP and the descent family over Flower messages against plain loops, bit for bit.

Runs go the whole way but for the network: ServerApp's strategy, codec, ClientApp, coalition, screening.
"""

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest

from experiment.config import parse, resolve
from experiment.opened import Experiment
from link import codec
from strategies.method import Vector
from tasks.contract import Problem, Setting, TaskSpec
from tests.local_grid import federation
from tests.reference.plain_methods import demoa, descent, marina, nsgdm

COMMON = """
[federation]
clients = 7
byzantine = 2
seed = 5
[task]
kind = "digits"
model = "softmax"
[strategy]
rounds = 8
gamma = 0.4
"""
MARINA = """
batch = 16
p = 0.25
"""
KINDS: dict[str, tuple[Callable[[Experiment], Iterator[Vector]], str]] = {
    "byz-vr-marina": (marina, MARINA),
    "byz-vr-marina-2": (marina, MARINA),
    "byz-vr-marina-pp plus": (marina, MARINA + "cohort = 5\nalpha = 0.5\nplus = true"),
    "byz-vr-marina-pp minibatch": (marina, MARINA + "cohort = 5\nalpha = 0.5\nfull_batch = 40"),
    "byz-vr-marina-pp auto": (marina, MARINA + 'cohort = 5\nclip = "auto"'),
    "robust-sgd": (descent, "batch = 8"),
    "robust-sgd full": (descent, "cohort = 5"),
    "robust-sgd clipped": (descent, "batch = 8\ncohort = 5\nclip = true\nalpha = 1.5"),
    "robust-sgd auto": (descent, 'batch = 8\ncohort = 5\nclip = "auto"'),
    "robust-momentum-sgd": (descent, "batch = 8\nbeta = 0.8"),
    "robust-momentum-sgd clipped": (descent, "batch = 8\ncohort = 5\nclip = true\nalpha = 3.0"),
    "local-sgd": (descent, "batch = 8\nlocal_steps = 3\nlocal_gamma = 0.2"),
    "local-sgd one step": (descent, "batch = 8\nlocal_steps = 1\nlocal_gamma = 0.2"),
    "local-sgd clipped": (descent, "cohort = 5\nlocal_steps = 2\nlocal_gamma = 0.2\nclip = true\nalpha = 1.5"),
    "demoa": (demoa, "batch = 8\ncohort = 3\nalpha = 0.5"),
    "demoa full": (demoa, ""),
    "demoa hold": (demoa, 'batch = 8\ncohort = 3\nalpha = 0.5\nstale = "hold"'),
    "byz-nsgdm": (nsgdm, "batch = 8\nbeta = 0.8"),
}
ATTACKS = {
    "honest": ["federation.byzantine=0"],
    "bf": ["attack.kind=bf"],
    "alie": ["attack.kind=alie", "attack.view=omniscient", "attack.z=1.06"],
    "shb": ["attack.kind=shb"],
    "big": ["attack.kind=big"],
    "nan": ["attack.kind=nan"],
}
COMPRESSORS = {"identity": [], "rand-k": ["compressor.kind=rand-k", "compressor.ratio=0.2"]}


@cache
def loaded(task: TaskSpec, setting: Setting) -> Problem:
    return task.load(setting)


def open_experiment(name: str, overrides: list[str]) -> Experiment:
    config = parse(f'{COMMON}{KINDS[name][1]}\nkind = "{name.split()[0]}"', overrides)
    problem = loaded(config.task, config.setting(None, None))
    config = resolve(config, problem)
    return Experiment(config, problem)


def assert_same_run(name: str, overrides: list[str]) -> None:
    experiment = open_experiment(name, overrides)
    grid, strategy = federation(experiment)
    ours: list[Vector] = []
    strategy.on_round = lambda record: ours.append(strategy.state.x)
    strategy.start(grid, codec.to_arrays(experiment.problem.initial()), experiment.config.strategy.rounds)
    assert len(ours) == experiment.config.strategy.rounds
    for k, (got, expected) in enumerate(zip(ours, KINDS[name][0](experiment), strict=True), start=1):
        assert got.dtype == expected.dtype == experiment.problem.dtype
        assert got.tobytes() == expected.tobytes(), f"x^{k} differs by {np.max(np.abs(got - expected)):.1e}"
    assert not np.array_equal(ours[0], ours[-1])


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", KINDS)
def test_run_equals_the_plain_loop(name: str, attack: str) -> None:
    assert_same_run(name, ATTACKS[attack])


@pytest.mark.parametrize("attack", ["honest", "alie"])
@pytest.mark.parametrize("name", KINDS)
def test_compressed_run_equals_the_plain_loop(name: str, attack: str) -> None:
    assert_same_run(name, [*ATTACKS[attack], *COMPRESSORS["rand-k"]])


@pytest.mark.parametrize("name", KINDS)
def test_run_in_double_precision_equals_the_plain_loop(name: str) -> None:
    assert_same_run(name, [*ATTACKS["alie"], "task.dtype=float64", "aggregator.kind=rfa"])


COSINE = 'strategy.gamma={kind="cosine",start=0.4,end=0.01,warmup=2}'
SQRT = 'strategy.gamma={kind="sqrt",start=0.4,k0=3}'
STEP = 'strategy.gamma={kind="step",start=0.4,milestones=[3,5],factor=0.5}'
LINEAR = 'strategy.gamma={kind="linear",start=0.4,warmup=1}'
MOMENTUM, ADAM = 'strategy.server={kind="momentum",mu=0.8}', 'strategy.server={kind="adam",tau=0.01}'
LOCAL = ["strategy.local_momentum=0.9", 'strategy.local_schedule={kind="linear",end=0.02}']


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("byz-vr-marina", [COSINE]),  # whose workers take the server's step
        ("byz-vr-marina-2", [LINEAR]),
        ("byz-vr-marina-pp plus", [STEP]),
        ("byz-vr-marina-pp auto", [COSINE]),
        ("robust-sgd", [COSINE, ADAM]),
        ("robust-sgd clipped", [SQRT, MOMENTUM]),
        ("robust-sgd auto", [LINEAR, ADAM]),
        ("robust-momentum-sgd", [STEP, MOMENTUM]),
        ("local-sgd", [COSINE, MOMENTUM, *LOCAL]),
        ("local-sgd clipped", [*LOCAL]),
        ("demoa", [COSINE, ADAM]),
        ("demoa hold", [MOMENTUM]),
        ("byz-nsgdm", [COSINE]),
        ("byz-nsgdm", [SQRT]),
    ],
)
def test_run_with_schedules_and_server_steps_equals_the_plain_loop(name: str, overrides: list[str]) -> None:
    assert_same_run(name, [*overrides, *ATTACKS["alie"]])


@pytest.mark.parametrize("name", ["byz-vr-marina", "byz-vr-marina-pp plus", "robust-sgd clipped", "demoa", "byz-nsgdm"])
def test_a_scaled_run_is_one_with_another_gamma_and_alpha(name: str) -> None:
    models = []
    for gamma, alpha, scales in ((0.4, 1.0, (0.5, 2.0)), (0.2, 2.0, (1.0, 1.0))):
        clipped = [f"strategy.alpha={alpha}"] if "alpha" in KINDS[name][1] and name != "demoa" else []
        experiment = open_experiment(name, [f"strategy.gamma={gamma}", *clipped, *ATTACKS["alie"]])
        grid, strategy = federation(experiment)
        strategy.step_scale, strategy.alpha_scale = scales
        strategy.start(grid, codec.to_arrays(experiment.problem.initial()), 5)
        models.append(strategy.state.x.tobytes())
    assert models[0] == models[1]
