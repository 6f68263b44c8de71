"""The former name of ``strategies.aggregators.preaggregators``."""

from foundation.former import moved
from strategies.aggregators.preaggregators import *  # noqa: F403
from strategies.aggregators.preaggregators import PreAggregator

PreStep = PreAggregator

moved(__name__, "strategies.aggregators.preaggregators")
