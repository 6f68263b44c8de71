"""Robust aggregation rules and pre-aggregators: one vector out of n' of which up to f may be anything at all.

    import breakwater as bw

    rule = bw.aggregators.TrimmedMean(pre=(bw.aggregators.NearestNeighbourMixing(),))
    rule(rows, f=3)

docs/catalogue.md lists them with what each tolerates. A rule of one's own derives from ``Rule``.
"""

from strategies.aggregators import (
    Bulyan,
    CenteredClipping,
    ComparativeGradientElimination,
    CoordinateMedian,
    CovarianceFilter,
    DivideAndConquer,
    FLTrust,
    GeometricMedian,
    Krum,
    Mean,
    MeanAroundMedian,
    MinimumDiameterAveraging,
    MoNNA,
    MultiKrum,
    Rule,
    SignGuard,
    SmallestVarianceAveraging,
    TrimmedMean,
)
from strategies.aggregators.preaggregators import (
    AdaptiveRobustClipping,
    Bucketing,
    NearestNeighbourMixing,
    PreAggregator,
    StaticClipping,
)
from strategies.aggregators.weighted_rows import WeightedRows
from strategies.operators import Aggregator, Rows, Vector, Weights

__all__ = [
    "AdaptiveRobustClipping",
    "Aggregator",
    "Bucketing",
    "Bulyan",
    "CenteredClipping",
    "ComparativeGradientElimination",
    "CoordinateMedian",
    "CovarianceFilter",
    "DivideAndConquer",
    "FLTrust",
    "GeometricMedian",
    "Krum",
    "Mean",
    "MeanAroundMedian",
    "MinimumDiameterAveraging",
    "MoNNA",
    "MultiKrum",
    "NearestNeighbourMixing",
    "PreAggregator",
    "Rows",
    "Rule",
    "SignGuard",
    "SmallestVarianceAveraging",
    "StaticClipping",
    "TrimmedMean",
    "Vector",
    "WeightedRows",
    "Weights",
]
