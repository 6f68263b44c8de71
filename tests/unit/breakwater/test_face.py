"""What users import: its names, their documentation, and what importing it costs."""

import inspect
import subprocess
import sys
from importlib import import_module

import pytest

import breakwater
from tests.packages import ROOT

NAMES = {
    "breakwater": """
        AppStrategy BreakwaterError CheckpointSection Comparison Config ConfigError EvaluationSection Federation
        Predictions RobustFedAvg Run StalledError TableModel aggregators answer attacks compare compressors load_config
        load_model methods robust_deltas_mod run tasks""",
    "breakwater.aggregators": """
        AdaptiveRobustClipping Aggregator Bucketing Bulyan CenteredClipping ComparativeGradientElimination
        CoordinateMedian CovarianceFilter DivideAndConquer FLTrust GeometricMedian Krum Mean MeanAroundMedian
        MinimumDiameterAveraging MoNNA MultiKrum NearestNeighbourMixing PreAggregator Rows Rule SignGuard
        SmallestVarianceAveraging StaticClipping TrimmedMean Vector WeightedRows Weights""",
    "breakwater.attacks": """
        ALIE Attack Big BitFlip FOE Fang Gaussian IPM Infinity LabelFlip Mimic MinMax MinSum NaN OptimalALIE OptimalIPM
        Packet ROP Replace ShiftBack Sight Silence Vector View WireFault Zero""",
    "breakwater.compressors": """
        Choice Compressor Identity Masked Natural Packed Packet PacketLayout PermK QSGD RandK ScaledSign TopK Vector
        draw_seed""",
    "breakwater.methods": """
        Aggregator Ask ByzDM21 ByzDashaPage ByzEF21 ByzEF21BC ByzEF21SGDM ByzNSGDM ByzVRMarina ByzVRMarina2
        ByzVRMarinaPP Combined Compressor CosineSchedule DeMoA Descent Evaluation Key LinearSchedule LocalSGD
        Method Oracle Packet PacketLayout Past Rejected Report RoSDHB RoSDHBLocal RobustAveraging
        RobustMomentumSGD RobustSGD Role Rows ServerAdam ServerMomentum SqrtSchedule StateLostError Stateful
        StepSchedule Vector Weights WorkerState aggregate examine gradient norm stack stream""",
    "breakwater.tasks": """
        Cifar10Task CustomTask DigitsTask Evaluation LogisticTask MnistTask Oracle Problem Setting TableTask TaskError
        TaskSpec Vector""",
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
