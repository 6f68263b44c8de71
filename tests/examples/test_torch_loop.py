"""The loop in PyTorch without Flower: a rule makes the difference."""

from breakwater.aggregators import CoordinateMedian, Mean, NearestNeighbourMixing
from examples.torch_loop import train


def test_a_rule_alone_makes_a_torch_loop_robust() -> None:
    assert train(CoordinateMedian(pre=(NearestNeighbourMixing(),))) > 0.95
    assert train(Mean()) < 0.5
