"""What somebody writes who checks types: never run, and checked by mypy with everything else.

``assert_type`` fails the check where a type is another one, and so does an ignored error that is none.
"""

from pathlib import Path
from typing import Any, assert_type

import numpy as np
import torch
from numpy.typing import NDArray

import breakwater as bw

rows: NDArray[np.float64] = np.zeros((9, 3))
v: NDArray[np.float64] = rows[0]
assert_type(bw.aggregators.GeometricMedian()(rows, f=2), NDArray[np.float64])
assert_type(bw.aggregators.Krum()([torch.zeros(3)] * 9, f=2), torch.Tensor)
assert_type(bw.aggregators.NearestNeighbourMixing()(torch.zeros(9, 3), 2), tuple[torch.Tensor, int])
assert_type(bw.compressors.TopK(k=2)(v), NDArray[np.float64])
assert_type(bw.attacks.ALIE().vectors(torch.zeros(7, 3), f=2), torch.Tensor)
config = bw.Config(
    federation=bw.Federation(clients=10, byzantine=3),
    task=bw.tasks.DigitsTask(),
    strategy=bw.methods.RobustSGD(
        n=10,
        f=3,
        gamma=0.1,
        batch=16,
        alpha=None,
        cohort=10,
        aggregator=bw.aggregators.TrimmedMean(),
        compressor=bw.compressors.Identity(),
    ),
    rounds=20,
    attack=bw.attacks.ALIE(),
)
run = bw.run(config, overrides={"strategy.rounds": 5}, out="runs/x", processes=False)
assert_type(run.accuracy, float | None)
assert_type(run.bytes_up, int)
assert_type(run.metrics["gap"], NDArray[Any])
assert_type(run.load_into(torch.nn.Linear(2, 1)), torch.nn.Linear)
assert_type(bw.compare([run, "runs/y"]).report("both.html"), Path)
bw.run(3)  # type: ignore[arg-type]
bw.aggregators.Krum()(rows, f="two")  # type: ignore[call-overload]
