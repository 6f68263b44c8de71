"""Robust aggregation rules: one vector out of n' of which up to f may be anything at all.

Each rule is a frozen dataclass, called as a function of the rows, f, a generator for its random pre-aggregators and a
centre for the rule that needs one. The base class ``Rule`` checks (n', f) and runs the pre-aggregators; a rule itself
is one method of a few lines.

===============  =======================================================  ==================  ==========================
kind             what                                                     takes               where
===============  =======================================================  ==================  ==========================
mean             mean: defends against none                               any f               ``coordinate_rules``
cm               median of every coordinate                               2f < n'             ``coordinate_rules``
cwtm             mean of every coordinate without f at either end         2f < n'             ``coordinate_rules``
meamed           mean of every coordinate around the median               2f < n'             ``coordinate_rules``
krum             the row with the nearest neighbours                      2f + 3 <= n'        ``distance_rules``
multi-krum       mean of the n' - f best rows by Krum's score             2f + 3 <= n'        ``distance_rules``
bulyan           Krum chooses n' - 2f, then means around the median       4f + 3 <= n'        ``distance_rules``
mda              mean of the n' - f rows of least diameter                2f < n'             ``distance_rules``
monna            mean of the n' - f rows around a trusted one             2f < n'             ``distance_rules``
rfa              geometric median                                         2f < n'             ``center_rules``
centered-clip    clipped steps from the previous aggregate                2f < n'             ``center_rules``
caf              weights that shrink along the largest variance           2f < n'             ``center_rules``
smea             mean of the n' - f rows of least variance                2f < n', few sets   ``center_rules``
dnc              mean without the furthest along the largest variance     2f < n'             ``filter_rules``
signguard        mean of rows of usual length and usual signs, clipped    2f < n'             ``filter_rules``
cge              mean of the n' - f shortest rows                         2f < n'             ``filter_rules``
fltrust          mean by the cosine to the server's own row               any f               ``trust_rules``
===============  =======================================================  ==================  ==========================

mean, cm, cwtm, rfa, centered-clip and fltrust also take rows with weights, see ``strategies.weights``.

Pre-aggregators (``preaggregators``) lower what is taken: bucketing by s divides the share by about s, which
``tolerates`` and ``breakdown`` include.
"""

from strategies.aggregators.center_rules import (
    CenteredClipping,
    CovarianceFilter,
    GeometricMedian,
    SmallestVarianceAveraging,
)
from strategies.aggregators.coordinate_rules import CoordinateMedian, Mean, MeanAroundMedian, TrimmedMean
from strategies.aggregators.distance_rules import Bulyan, Krum, MinimumDiameterAveraging, MoNNA, MultiKrum
from strategies.aggregators.filter_rules import ComparativeGradientElimination, DivideAndConquer, SignGuard
from strategies.aggregators.rule import Rule
from strategies.aggregators.trust_rules import FLTrust

__all__ = [
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
    "Rule",
    "SignGuard",
    "SmallestVarianceAveraging",
    "TrimmedMean",
]
