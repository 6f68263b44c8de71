"""The former name of ``strategies.aggregators.weighted_rows``."""

from foundation.former import moved
from strategies.aggregators.weighted_rows import *  # noqa: F403
from strategies.aggregators.weighted_rows import WeightedRows

Mixture = WeightedRows

moved(__name__, "strategies.aggregators.weighted_rows")
