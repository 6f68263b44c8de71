"""What users import: its names, their documentation, and what importing it costs."""

import inspect
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import breakwater
from tests.packages import ROOT

NAMES = {
    "breakwater": """
        AppStrategy BreakwaterError CheckpointSection Comparison Config ConfigError EvaluationSection Federation
        RobustFedAvg Run StalledError aggregators answer attacks compare compressors load_config methods
        robust_deltas_mod run tasks""",
    "breakwater.aggregators": """
        AdaptiveRobustClipping Aggregator Bucketing Bulyan CenteredClipping ComparativeGradientElimination
        CoordinateMedian CovarianceFilter DivideAndConquer GeometricMedian Krum Mean MeanAroundMedian
        MinimumDiameterAveraging MoNNA MultiKrum NearestNeighbourMixing PreAggregator Rows Rule SignGuard
        SmallestVarianceAveraging StaticClipping TrimmedMean Vector WeightedRows Weights""",
    "breakwater.attacks": """
        ALIE Attack Big BitFlip FOE Fang Gaussian IPM Infinity LabelFlip Mimic MinMax MinSum NaN OptimalALIE OptimalIPM
        Packet ROP ShiftBack Sight Silence Vector View WireFault Zero""",
    "breakwater.compressors": """
        Choice Compressor Identity Masked Natural Packed Packet PacketLayout PermK QSGD RandK ScaledSign TopK Vector
        draw_seed""",
    "breakwater.methods": """
        Aggregator Ask ByzDM21 ByzDashaPage ByzEF21 ByzEF21BC ByzEF21SGDM ByzNSGDM ByzVRMarina ByzVRMarina2
        ByzVRMarinaPP Combined Compressor DeMoA Descent Evaluation Key LocalSGD Method Oracle Packet PacketLayout Past
        Rejected Report RoSDHB RoSDHBLocal RobustAveraging RobustMomentumSGD RobustSGD Role Rows StateLostError Stateful
        Vector Weights
        WorkerState aggregate examine gradient norm stack stream""",
    "breakwater.tasks": """
        CustomTask DigitsTask Evaluation LogisticTask MnistTask Oracle Problem Setting TaskError TaskSpec Vector""",
}
"""All public names. To add one is easy, to take one back breaks somebody's code."""
HEAVY = ("flwr", "torch", "pydantic", "numba", "scipy", "sklearn", "grpc", "matplotlib", "rich", "pandas")
LIGHT = f"""
import sys, time
began = time.perf_counter(); import numpy; numpy_s = time.perf_counter() - began
began = time.perf_counter(); import breakwater; ours_s = time.perf_counter() - began
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
dir(breakwater)
assert "breakwater.aggregators" not in sys.modules
print(ours_s)
"""


@pytest.mark.parametrize("module", NAMES)
def test_the_public_names_are_these_and_no_others(module: str) -> None:
    found = import_module(module)
    assert sorted(found.__all__) == sorted(NAMES[module].split())
    assert set(found.__all__) <= set(dir(found))


@pytest.mark.parametrize("module", NAMES)
def test_every_public_name_is_documented(module: str) -> None:
    found = import_module(module)
    assert inspect.getdoc(found)
    for name in found.__all__:
        thing = getattr(found, name)
        if inspect.isclass(thing) or inspect.isroutine(thing):
            assert (thing.__doc__ or "").strip(), name
        for member, value in vars(thing).items() if thing in (breakwater.Run, breakwater.Comparison) else ():
            if not member.startswith("_"):
                assert inspect.getdoc(value), f"{name}.{member}"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'breakwater' has no attribute 'Fedaration'"):
        breakwater.Fedaration  # noqa: B018


def test_importing_it_loads_nothing_heavy_and_takes_a_moment() -> None:
    found = subprocess.run([sys.executable, "-c", LIGHT], cwd=ROOT, check=True, capture_output=True, text=True)
    assert float(found.stdout) < 0.3


USER = '''
"""What somebody writes who checks types."""

import numpy as np
from numpy.typing import NDArray
import torch

import breakwater as bw

rows: NDArray[np.float64] = np.zeros((9, 3))
reveal_type(bw.aggregators.GeometricMedian()(rows, f=2))
reveal_type(bw.aggregators.Krum()([torch.zeros(3)] * 9, f=2))
reveal_type(bw.aggregators.NearestNeighbourMixing()(torch.zeros(9, 3), 2))
v: NDArray[np.float64] = rows[0]
reveal_type(bw.compressors.TopK(k=2)(v))
reveal_type(bw.attacks.ALIE().vectors(torch.zeros(7, 3), f=2))
config = bw.Config(
    federation=bw.Federation(clients=10, byzantine=3),
    task=bw.tasks.DigitsTask(),
    strategy=bw.methods.RobustSGD(
        n=10, f=3, gamma=0.1, batch=16, alpha=None, cohort=10,
        aggregator=bw.aggregators.TrimmedMean(), compressor=bw.compressors.Identity(),
    ),
    rounds=20,
    attack=bw.attacks.ALIE(),
)
run = bw.run(config, overrides={"strategy.rounds": 5}, out="runs/x", processes=False)
reveal_type(run.accuracy)
reveal_type(run.bytes_up)
reveal_type(run.metrics["gap"])
reveal_type(run.load_into(torch.nn.Linear(2, 1)))
reveal_type(bw.compare([run, "runs/y"]).report("both.html"))
bw.run(3)
bw.aggregators.Krum()(rows, f="two")
'''
TYPES = [
    "numpy.ndarray[tuple[Any, ...], numpy.dtype[numpy.float64]]",
    "torch._tensor.Tensor",
    "tuple[torch._tensor.Tensor, int]",
    "numpy.ndarray[tuple[Any, ...], numpy.dtype[numpy.float64]]",
    "torch._tensor.Tensor",
    "float | None",
    "int",
    "numpy.ndarray[tuple[Any, ...], numpy.dtype[Any]]",
    "torch.nn.modules.linear.Linear",
    "pathlib.Path",
]


@pytest.mark.slow  # the type checker reads all that is behind the names
@pytest.mark.slow
def test_a_users_script_has_types(tmp_path: Path) -> None:
    script = tmp_path / "user.py"
    script.write_text(USER, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-pretty", "--hide-error-context"]
    command += ["--cache-dir", str(tmp_path / "cache"), str(script)]  # another run's knows another file of this name
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    ours = [line for line in found.stdout.splitlines() if line.startswith(str(script))]
    shown = [line for line in ours if "Revealed type" in line]
    assert [re.sub(r"builtins\.", "", line.split('"')[1]) for line in shown] == TYPES, found.stdout
    errors = [line for line in ours if ": error:" in line]
    assert len(errors) == 2, found.stdout
    assert "bw.run(3)" in USER.splitlines()[int(errors[0].split(":")[1]) - 1]
