"""The cohort of a round: who is drawn, the rows that came back, how many of them a rule must defend against."""

import math
from collections.abc import Collection, Mapping

import numpy as np
from numpy.random import Generator

from strategies.operators import Aggregator, Combined, Compressor, Rows, Vector
from strategies.weights import Masses, heaviest


def sample(
    clients: int, size: int, connected: Collection[int], rng: Generator, stratum: Collection[int] = ()
) -> list[int]:
    """Draw ``size`` workers uniformly without replacement among the connected ones.

    The whole permutation of the n workers is drawn and the absent ones are passed over, so that a run in which nobody
    is absent does not depend on how absence is handled.

    Args:
        clients: n.
        size: how many to draw; fewer are returned where fewer are connected.
        connected: the workers that can be reached.
        rng: the round's COHORT stream.
        stratum: workers of whom the cohort has ``share_of_stratum``; empty for simple random sampling. Where too few of
            them, or of the others, are connected, the rest is drawn from those that are.

    Returns:
        Workers in ascending order.
    """
    order = [i for i in rng.permutation(clients).tolist() if i in connected]
    if stratum:
        inside = [i for i in order if i in stratum][: share_of_stratum(size, clients, len(stratum))]
        outside = [i for i in order if i not in stratum][: size - len(inside)]
        first = {*inside, *outside}
        order.sort(key=lambda i: i not in first)  # stable
    return sorted(order[:size])


def share_of_stratum(size: int, clients: int, members: int) -> int:
    """Return the share of ``members`` of all clients in a cohort of ``size``, rounded to the nearest, halves up."""
    return (2 * members * size + clients) // (2 * clients)


def byzantine_majority(clients: int, byzantine: int, cohort: int) -> tuple[float, float]:
    """Return the probabilities of a strict Byzantine majority and of a tie in a uniformly sampled cohort.

    Args:
        clients: n.
        byzantine: f.
        cohort: C, drawn without replacement.

    Source: the hypergeometric distribution; Malinovsky et al. (NeurIPS 2024), definition of p_G.
    """
    total = math.comb(clients, cohort)
    ways = {t: math.comb(byzantine, t) * math.comb(clients - byzantine, cohort - t) for t in range(cohort + 1)}
    majority = sum(w for t, w in ways.items() if 2 * t > cohort)
    return majority / total, (ways[cohort // 2] if cohort % 2 == 0 else 0) / total


def common_seed(compressor: Compressor, rng: Generator) -> int | None:
    """Draw the seed that all workers of a round share, if the compressor needs one; ``rng`` is the COIN stream."""
    return int(rng.bit_generator.random_raw()) if compressor.shared else None


def quorum_of(share: float | None, size: int) -> int:
    """Return how many of ``size`` replies a share of them is, rounded up; 0 for None."""
    return 0 if share is None else math.ceil(share * size - 1e-9)  # 0.55 * 20 is a little more than 11


def stack(like: Vector, replies: Mapping[int, Vector]) -> Rows:
    """Stack the replies of a round in the order of their workers.

    Args:
        like: a vector of the model's length and dtype, for the case that nothing came.
        replies: vectors of shape (d,), by worker.

    Returns:
        Shape (n', d); n' may be 0.
    """
    return np.stack(list(replies.values())) if replies else np.empty((0, like.size), like.dtype)


def expected_byzantine(rows: int, clients: int, byzantine: int) -> int:
    """Return ceil(delta n') with delta = f / n: how many of n' rows to defend against."""
    return -(-byzantine * rows // clients)


def aggregate(
    rule: Aggregator,
    rows: Rows,
    clients: int,
    byzantine: int,
    rng: Generator,
    center: Vector | None = None,
    *,
    mass: Masses | None = None,
    asked: int = 0,
    clipped: bool = False,
) -> Combined:
    """Aggregate the rows that arrived, defending against their share of Byzantine ones as far as the rule can.

    With declared weights the heaviest rows may be the Byzantine ones. Where as many of them as are expected among those
    asked have half of the weight that came, nothing is aggregated, unless the rows are clipped: then the rule defends
    against as many of those expected among the rows as it can.

    Args:
        rule: the robust rule.
        rows: shape (n', d), n' >= 0.
        clients: n.
        byzantine: f.
        rng: the round's AGGREGATE stream.
        center: the caller's previous aggregate, for rules that start from one; shape (d,).
        mass: declared weights of the rows, whole numbers of shape (n',); None where all count the same.
        asked: how many of the clients were asked for a row; 0 for as many as came.
        clipped: whether the rows are clipped to a radius that holds also where most of them are Byzantine.

    Returns:
        The aggregate, or the reason why these rows cannot be aggregated.
    """
    n = len(rows)
    if n == 0:
        return Combined(None, note="no usable reply")
    most = rule.tolerates(n)
    if most < 0:
        return Combined(None, note=f"{n} usable replies: too few for the rule")
    f = min(expected_byzantine(n, clients, byzantine), most)
    if mass is None:
        vector, weights = rule.weigh(rows, f, rng, center)
        return Combined(vector, rows=rows, center=vector, weights=weights)
    if not clipped:
        f = min(expected_byzantine(max(n, asked), clients, byzantine), n)
        if not rule.withstands(mass, f):
            share = heaviest(mass, f) / int(mass.sum())
            few = f"no quorum by weight: {f} of the {n} rows may have {100 * share:.3g} % of their weight"
            return Combined(None, note=f"{few}, too much for the rule", below_quorum=True)
        f = min(f, most)
    while not rule.withstands(mass, f):
        f -= 1
    vector, weights = rule.weigh(rows, f, rng, center, mass)
    return Combined(vector, rows=rows, center=vector, weights=weights)
