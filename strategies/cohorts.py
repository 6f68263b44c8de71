"""The cohort of a round: who is drawn, the rows that came back, how many of them a rule must defend against."""

import math
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

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


def excess(clients: int, byzantine: int, cohort: int) -> NDArray[np.float64]:
    """Return P{X > b} for b = 0 .. min(f, C), X the Byzantine clients in a uniformly sampled cohort.

    Args:
        clients: n.
        byzantine: f.
        cohort: C, drawn without replacement.

    Returns:
        Probabilities, shape (min(f, C) + 1,); the last one is 0.
    """
    log_factorial = _log_factorials(clients)
    found = np.arange(max(0, cohort - (clients - byzantine)), min(byzantine, cohort) + 1)
    honest = clients - byzantine
    log_ways = log_factorial[byzantine] - log_factorial[found] - log_factorial[byzantine - found]
    log_ways += log_factorial[honest] - log_factorial[cohort - found] - log_factorial[honest - cohort + found]
    log_ways -= log_factorial[clients] - log_factorial[cohort] - log_factorial[clients - cohort]
    chances = np.zeros(min(byzantine, cohort) + 2)
    chances[found] = np.exp(log_ways)
    return np.cumsum(chances[::-1])[::-1][1:]  # from the smallest on


@lru_cache(maxsize=1)
def _log_factorials(n: int) -> NDArray[np.float64]:
    """Return log k! for k = 0 .. n."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])


def never(chance: float, rounds: int) -> float:
    """Return the probability that something with this chance in a round happens in none of them."""
    return math.exp(rounds * math.log1p(-chance)) if chance < 1 else 0.0


SIZES = 2000
"""Cohorts up to this size are tried in search of the least one."""


def least_cohort(
    clients: int, byzantine: int, rounds: int, confidence: float, tolerates: Callable[[int], int], share: float = 1.0
) -> tuple[int, int] | None:
    """Return the least cohort such that, with this confidence, no round has more Byzantine clients than a rule takes.

    Every size is tried by itself, as larger ones are not always better: an even cohort takes no more Byzantine clients
    than the odd one below it, and has more of them.

    Args:
        clients: n.
        byzantine: f.
        rounds: T.
        confidence: in (0, 1).
        tolerates: returns the most Byzantine rows that the rule takes of n' rows; negative if it takes none.
        share: probability that a round samples such a cohort.

    Returns:
        The size, and the most Byzantine clients that a round then has with this confidence; None where no size up to
        ``SIZES`` will do.

    Source: Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Rizk, Voitovych (ICML 2024), sampling threshold, here exact.
    """
    for size in range(1, min(clients, SIZES) + 1):
        over = share * excess(clients, byzantine, size)
        most = next(b for b, chance in enumerate(over) if never(chance, rounds) >= confidence)
        if 2 * most < size and tolerates(size) >= most:
            return size, most
    return None


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
