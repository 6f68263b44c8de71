"""What clipping promises: no cohort, not even an entirely Byzantine one, moves the estimate further than lam."""

from dataclasses import replace
from math import ceil, sqrt

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from strategies.aggregators import CoordinateMedian, GeometricMedian, Krum, Mean, Rule, TrimmedMean
from strategies.aggregators.preaggregators import Bucketing, NearestNeighbourMixing
from strategies.byz_vr_marina_pp import ByzVRMarinaPP
from strategies.cohorts import expected_byzantine, sample
from strategies.compressors import Identity
from strategies.descent import DescentState
from strategies.marina import DIFFERENCE, FULL, MarinaState
from strategies.method import Rows
from strategies.radius import AUTO, FACTOR, WINDOW, observe, radius
from strategies.robust_sgd import RobustSGD
from strategies.vectors import norm

D = 3
CLIENTS = 9
RULES: dict[str, tuple[Rule, float]] = {
    # A rule that averages, or picks, vectors of length lam gives one of at most lam; one that works on every coordinate
    # for itself at most lam in each, sqrt(d) lam in all.
    "mean": (Mean(), 1.0),
    "rfa": (GeometricMedian(), 1.0),
    "krum": (Krum(), 1.0),
    "cm": (CoordinateMedian(), sqrt(D)),
    "cwtm": (TrimmedMean(), sqrt(D)),
    "mean after nnm": (Mean(pre=(NearestNeighbourMixing(),)), 1.0),
    "krum after bucketing": (Krum(pre=(Bucketing(s=2),)), 1.0),
    "rfa after bucketing and nnm": (GeometricMedian(pre=(Bucketing(s=2), NearestNeighbourMixing())), 1.0),
}
HOSTILE = st.floats(-1e300, 1e300) | st.sampled_from([0.0, 1e308, -1e308, 5e-324])
POINTS = arrays(np.float64, (2, D), elements=st.floats(-1e6, 1e6))


def method(rule: Rule, alpha: float = 2.0) -> ByzVRMarinaPP:
    return ByzVRMarinaPP(
        n=CLIENTS, f=2, gamma=0.1, p=0.5, cohort=5, full_cohort=CLIENTS, batch=1, alpha=alpha, aggregator=rule,
        compressor=Identity(),
    )  # fmt: skip


@pytest.mark.parametrize("name", RULES)
@given(
    points=POINTS,
    rows=st.integers(0, CLIENTS).flatmap(lambda n: arrays(np.float64, (n, D), elements=HOSTILE)),
    alpha=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**32),
)
def test_an_entirely_byzantine_cohort_moves_the_estimate_by_at_most_lam(
    name: str, points: Rows, rows: Rows, alpha: float, seed: int
) -> None:
    rule, factor = RULES[name]
    run, (x, x_prev) = method(rule, alpha), points
    state = MarinaState(3, x, x_prev, np.zeros(D), full_due=False)
    ask = run.ask(state, _tails())
    assert ask.kind == DIFFERENCE
    after = run.update(state, ask, dict(enumerate(rows)), np.random.default_rng(seed))
    assert after.g is not None
    lam = alpha * norm(x - x_prev)
    assert norm(after.g) <= factor * lam * (1 + 1e-9) + 1e-300
    assert after.x.tobytes() == (x - 0.1 * after.g).tobytes()


@given(
    points=POINTS,
    rows=st.integers(0, CLIENTS).flatmap(lambda n: arrays(np.float64, (n, D), elements=HOSTILE)),
    notes=st.lists(st.floats(0, 1e3), min_size=1, max_size=WINDOW),
    plus=st.booleans(),
)
def test_nor_does_it_where_the_radius_is_learnt(points: Rows, rows: Rows, notes: list[float], plus: bool) -> None:
    run, (x, x_prev) = replace(method(GeometricMedian()), alpha=AUTO, plus=plus), points
    state = MarinaState(3, x, x_prev, np.zeros(D), full_due=False, ratios=tuple(notes))
    after = run.update(state, run.ask(state, _tails()), dict(enumerate(rows)), np.random.default_rng(0))
    assert after.g is not None
    lam = FACTOR * sorted(notes)[(len(notes) - 1) // 2] * norm(x - x_prev)
    assert norm(after.g) <= lam * (1 + 1e-9) + 1e-300
    assert len(after.ratios) <= WINDOW


@pytest.mark.parametrize("name", RULES)
@given(
    points=POINTS,
    rows=st.integers(0, CLIENTS).flatmap(lambda n: arrays(np.float64, (n, D), elements=HOSTILE)),
    alpha=st.floats(1e-3, 1e3),
)
def test_the_heuristic_moves_its_aggregate_by_at_most_lam(name: str, points: Rows, rows: Rows, alpha: float) -> None:
    rule, factor = RULES[name]
    (x, x_prev), g = points, np.ones(D)
    inner = RobustSGD(n=CLIENTS, f=2, gamma=0.1, cohort=5, batch=0, aggregator=rule, compressor=Identity())
    run = replace(inner, alpha=alpha)
    state = DescentState(3, x, x_prev, g)
    after = run.update(state, run.ask(state, _tails()), dict(enumerate(rows)), np.random.default_rng(0))
    lam = alpha * norm(x - x_prev)
    assume(lam > 0)
    assert after.g is not None
    assert norm(after.g - g) <= factor * lam * (1 + 1e-9) + 1e-12


@given(
    batches=st.lists(arrays(np.float64, st.tuples(st.integers(0, 6), st.just(1)), elements=HOSTILE), max_size=40),
    step=st.floats(1e-6, 1e6),
)
def test_the_learnt_radius_is_one_of_the_lengths_seen(batches: list[Rows], step: float) -> None:
    notes: tuple[float, ...] = ()
    lengths = {0.0}
    for rows in batches:
        notes = observe(notes, rows, step)
        lengths |= {norm(row) / step for row in rows}
    assert set(notes) <= lengths
    assert len(notes) == min(WINDOW, sum(len(rows) > 0 for rows in batches))
    if notes:
        lam = radius(AUTO, np.full((3, 1), 1e300), step, notes)
        lam = float("inf") if lam is None else lam
        assert min(notes) * FACTOR * step <= lam <= max(notes) * FACTOR * step


@given(rows=arrays(np.float64, st.tuples(st.integers(0, CLIENTS), st.just(D)), elements=HOSTILE), points=POINTS)
def test_a_full_round_counts_with_a_quorum_and_only_then(rows: Rows, points: Rows) -> None:
    run, g = method(CoordinateMedian()), np.array([1.0, -2.0, 3.0])
    state = MarinaState(3, points[0], points[1], g, full_due=True)
    ask = run.ask(state, _tails())
    assert ask.kind == FULL
    after = run.update(state, ask, dict(enumerate(rows)), np.random.default_rng(0))
    assert after.g is not None
    assert after.full_due is (len(rows) <= CLIENTS // 2)
    if after.full_due:
        assert after.g is g
    else:
        assert after.g.tolist() == CoordinateMedian()(rows, 0, np.random.default_rng(0)).tolist()


@given(
    clients=st.integers(1, 60),
    size=st.integers(0, 60),
    connected=st.sets(st.integers(0, 59)),
    seed=st.integers(0, 2**32),
)
def test_a_cohort_is_drawn_from_those_connected(clients: int, size: int, connected: set[int], seed: int) -> None:
    reachable = {i for i in connected if i < clients}
    cohort = sample(clients, size, connected, np.random.default_rng(seed))
    assert cohort == sorted(set(cohort))
    assert set(cohort) <= reachable
    assert len(cohort) == min(size, len(reachable))


@given(clients=st.integers(1, 1000), share=st.floats(0, 0.499), rows=st.integers(0, 1000))
def test_the_byzantine_share_of_a_cohort_is_never_underestimated(clients: int, share: float, rows: int) -> None:
    byzantine = int(share * clients)
    expected = expected_byzantine(rows, clients, byzantine)
    assert expected * clients >= byzantine * rows
    assert (expected - 1) * clients < byzantine * rows or expected == 0
    assert expected <= ceil(rows / 2)


def _tails() -> np.random.Generator:
    """A generator whose first draw is above 1/2."""
    generator = np.random.default_rng(0)
    assert np.random.default_rng(0).random() > 0.5
    return generator
