"""Byz-EF21-SGDM and Byz-DM21 on a9a with exact gradients, against numbers of an independent implementation in NumPy.

Where every client holds all rows and computes full gradients, all honest rows are equal: rules that ignore up to f
other rows return them, and the run is that of one client. So one client is simulated.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strategies.aggregators import CoordinateMedian
from strategies.byz_dm21 import ByzDM21
from strategies.byz_ef21_sgdm import ByzEF21SGDM
from strategies.compressors import TopK
from tasks.contract import Problem, Setting
from tasks.logistic import LogisticTask
from tests.simulation import Simulation

SHARED: dict[str, Any] = {"n": 1, "f": 0, "aggregator": CoordinateMedian(), "compressor": TopK(k=12), "gamma": 1.0}
GAPS = {
    "byz-ef21-sgdm": (ByzEF21SGDM(**SHARED, eta=0.1), 5.62049e-06, 5.34756e-09),
    "byz-ef21-sgdm, eta 1": (ByzEF21SGDM(**SHARED, eta=1.0), 1.96666e-05, 4.77999e-08),
    "byz-dm21": (ByzDM21(**SHARED, eta=0.2), 6.75016e-06, 7.19874e-09),
    "byz-dm21, beyond its bound": (ByzDM21(**SHARED, eta=0.1), 5.77059e-04, 4.54461e-03),
    "byz-vr-dm21": (ByzDM21(**SHARED, eta=0.1, vr=True), 5.62049e-06, 5.34756e-09),
}
"""f - f* after 150 and 300 steps of 0.2/L."""


@pytest.fixture(scope="module")
def problem(data_dir: Path) -> Problem:
    task = LogisticTask(data="libsvm/a9a.gz", normalise=True, l2=0.01, dtype="float64", partition="replicated")
    return task.load(Setting(clients=1, byzantine=0, seed=1, data_dir=data_dir))


@pytest.mark.slow
@pytest.mark.parametrize("name", GAPS)
def test_the_gaps_on_a9a(name: str, problem: Problem) -> None:
    method, *expected = GAPS[name]
    assert problem.smoothness is not None
    method = type(method)(**{**vars(method), "gamma": 0.2 / problem.smoothness})
    run = Simulation(method, [problem.oracle(0)], problem.initial())
    gaps = []
    for _ in range(2):
        run.run(150)
        gaps.append(problem.evaluate(run.state.x).gap)
    assert np.array(gaps) == pytest.approx(expected, rel=2e-6)
