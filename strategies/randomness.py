"""Every random number of a run comes from here: one independent stream per (seed, role, worker, round).

No generator lives longer than the call that it was made for, so a run is a function of its config and seed alone:
which process draws, and in which order messages arrive, changes nothing.
"""

from enum import IntEnum

import numpy as np
from numpy.random import Generator


class Role(IntEnum):
    """What a stream is drawn for. The numbers are part of the reproducibility promise: never renumber."""

    COIN = 1  # the server's c_k ~ Bernoulli(p)
    COHORT = 2  # which clients are sampled
    WORKER = 3  # a worker's minibatch, then its compression
    AGGREGATE = 4  # random pre-aggregators of a rule (bucketing)
    INITIAL = 5  # the starting point x^0
    PARTITION = 6  # who holds which data
    ATTACK = 7  # a Byzantine client's own choices
    EVALUATION = 8  # which clients are asked to evaluate
    MODEL = 9  # what a worker's model draws in training (dropout), and the order of its full gradients
    NORM_STATS = 10  # the batches that batch norm's running statistics are computed from
    MEMBERSHIP = 11  # which clients are Byzantine in a round, where that changes
    ROOT = 12  # which training rows the server keeps for a rule that needs its own


def stream(seed: int, role: Role, worker: int = 0, round_: int = 0) -> Generator:
    """Return the generator of one call; the same four numbers give the same draws on every machine."""
    words = (seed, role, worker, round_)
    # The same words as an array spare NumPy a third of its work; it splits longer numbers itself.
    return np.random.default_rng(np.array(words, np.uint32) if seed < 2**32 else words)
