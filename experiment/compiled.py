"""Loops that are compiled once per machine: all that a run will need is compiled, or loaded, before its first round."""

from time import perf_counter

from experiment.opened import Experiment
from strategies.aggregators import weighted_rows
from strategies.compressors import Identity, packing

LONG_S = 3.0
"""Loading takes less than this, compiling more."""


def prepare(experiment: Experiment, *, aggregates: bool) -> float:
    """Load the loops that are needed for vectors of this length; return the seconds it took.

    Short vectors need none: NumPy is as fast on them, and a process without the loops starts a second sooner.

    Args:
        experiment: the opened experiment.
        aggregates: whether this process runs the rule, as the server does, and attackers who plan ahead.
    """
    began = perf_counter()
    config, problem = experiment.config, experiment.problem
    rows = max(config.aggregated.values())
    if aggregates and weighted_rows.wanted(rows, problem.dim):
        weighted_rows.prepare(problem.dtype, weighted=bool(config.federation.whole_weights))
    # Who reads packets screens their values with these loops, also where nothing is compressed.
    if problem.dtype == "float32" and (aggregates or config.compressor != Identity()):
        packing.prepare(problem.dim)
    return perf_counter() - began
