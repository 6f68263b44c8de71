"""The laws of a compressor: unbiased, of bounded variance and norm, uniform masks; and any packet is screened."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from strategies.algorithm import Compressor, Packet, Vector
from strategies.compressors import Identity, RandK, indices

SEEDS = st.integers(0, 2**64 - 1)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Compressor, Vector]:
    """A compressor and a vector for it, of either type, from denormal to 1e30."""
    d = draw(st.integers(1, 40))
    choices: list[Compressor] = [Identity(), RandK(k=draw(st.integers(1, d))), RandK(ratio=0.3)]
    q = draw(st.sampled_from(choices))
    numbers = st.floats(-(2.0**100), 2.0**100, width=32)
    return q, draw(hnp.arrays(draw(st.sampled_from([np.float32, np.float64])), d, elements=numbers))


@given(case=cases(), seed=st.integers(0, 2**32))
def test_a_packet_carries_n_values_passes_the_screening_and_reads_as_a_vector(
    case: tuple[Compressor, Vector], seed: int
) -> None:
    q, v = case
    before = v.copy()
    v.flags.writeable = False
    packet = q.compress(v, np.random.default_rng(seed))
    assert len(packet.values) == q.n_values(len(v))
    assert q.flaw(packet, len(v), v.dtype) is None
    out = q.decompress(packet)
    assert (out.shape, out.dtype) == (v.shape, v.dtype)
    np.testing.assert_array_equal(v, before)


@given(case=cases(), seed=st.integers(0, 2**32))
def test_the_norm_grows_by_d_q_at_most(case: tuple[Compressor, Vector], seed: int) -> None:
    q, v = case
    out = q.decompress(q.compress(v, np.random.default_rng(seed))).astype(np.float64)
    length = np.linalg.norm(v.astype(np.float64))
    assert np.linalg.norm(out) <= q.norm_bound(len(v)) * length * (1 + 1e-6) + 1e-44


@given(d=st.integers(1, 300), data=st.data(), seed=SEEDS)
def test_a_mask_is_k_distinct_coordinates_in_ascending_order(d: int, data: st.DataObject, seed: int) -> None:
    k = data.draw(st.integers(0, d))
    mask = indices(seed, d, k)
    assert len(mask) == k
    assert (np.diff(mask) > 0).all()
    assert k == 0 or (mask[0] >= 0 and mask[-1] < d)
    np.testing.assert_array_equal(mask, indices(seed, d, k))


@pytest.mark.parametrize(("d", "k"), [(5, 1), (5, 2), (6, 3), (5, 4), (4, 4)])
def test_expectation_and_variance_are_exact_over_all_masks(d: int, k: int) -> None:
    """Averaged over one seed for each of the C(d, k) masks: E[Q(v)] = v and E||Q(v) - v||^2 = omega ||v||^2."""
    seed_of: dict[tuple[int, ...], int] = {}
    for seed in range(2000):
        seed_of.setdefault(tuple(indices(seed, d, k).tolist()), seed)
    assert set(seed_of) == set(combinations(range(d), k))
    q, v = RandK(k=k), np.random.default_rng(1).normal(size=d)
    outs = np.array([q.decompress(Packet("rand-k", d, v[list(mask)], seed)) for mask, seed in seed_of.items()])
    np.testing.assert_allclose(outs.mean(axis=0), v, rtol=1e-12)
    variance = ((outs - v) ** 2).sum(axis=1).mean()
    np.testing.assert_allclose(variance, q.omega(d) * (v @ v), rtol=1e-12, atol=1e-12)


def test_expectation_and_variance_over_drawn_masks() -> None:
    q, d, draws = RandK(k=12), 123, 4000
    rng = np.random.default_rng(2)
    v = rng.normal(size=d)
    outs = np.array([q.decompress(q.compress(v, rng)) for _ in range(draws)])
    # A coordinate of Q(v) has variance omega v_j^2: five standard errors for the worst of 123.
    assert (np.abs(outs.mean(axis=0) - v) <= 5 * np.sqrt(q.omega(d) / draws) * np.abs(v)).all()
    variance = ((outs - v) ** 2).sum(axis=1).mean()
    np.testing.assert_allclose(variance, q.omega(d) * (v @ v), rtol=0.02)


@pytest.mark.parametrize(("d", "k"), [(8, 1), (6, 2), (6, 3), (6, 5), (5, 4)])
def test_all_masks_are_equally_likely(d: int, k: int) -> None:
    """A chi-square test over the C(d, k) sets; seeds both consecutive and spread out."""
    sets = {mask: i for i, mask in enumerate(combinations(range(d), k))}
    for seeds in (range(6000), np.random.default_rng(3).integers(0, 2**63, 6000).tolist()):
        counts = np.zeros(len(sets))
        for seed in seeds:
            counts[sets[tuple(indices(seed, d, k).tolist())]] += 1
        assert_uniform(counts)


def test_all_coordinates_and_pairs_are_equally_likely_in_a_large_mask() -> None:
    d, k = 1000, 100
    single, neighbours = np.zeros(d), np.zeros(d)
    for seed in range(3000):
        marked = np.zeros(d)
        marked[indices(seed, d, k)] = 1
        single += marked
        neighbours += marked * np.roll(marked, 1)
    # Counts of a mask of fixed size vary a little less than independent ones: (d - k)/d of the variance.
    assert_uniform(single, shrink=1 - k / d)
    assert abs(neighbours.sum() / (3000 * d) - k * (k - 1) / (d * (d - 1))) < 1e-4


def assert_uniform(counts: np.ndarray, shrink: float = 1.0) -> None:
    """Chi-square within five standard deviations of its mean, on either side: too even is wrong as well."""
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    chi_square = ((counts - expected) ** 2).sum() / expected / shrink
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom) + 1e-9


@given(
    kind=st.sampled_from(["rand-k", "identity", ""]),
    dim=st.integers(-1, 6),
    values=hnp.arrays(
        st.sampled_from([np.float32, np.float64]), hnp.array_shapes(min_dims=0, max_dims=2, max_side=6, min_side=0)
    ),
    seed=st.one_of(st.none(), st.integers(-1, 2**64)),
    q=st.sampled_from([Identity(), RandK(k=2), RandK(ratio=1.0)]),
)
def test_any_packet_is_refused_with_a_reason_or_can_be_used(
    kind: str, dim: int, values: Any, seed: int | None, q: Compressor
) -> None:
    packet = Packet(kind, dim, values, seed)
    reason = q.flaw(packet, 5, np.dtype(np.float32))
    if reason is None:
        out = q.decompress(packet)
        assert out.shape == (5,)
        assert out.dtype == np.float32
        assert np.isfinite(out).all()
    else:
        slug, _, detail = reason.partition(": ")
        assert slug in {"wrong kind", "wrong dimension", "wrong shape", "wrong dtype", "bad seed", "not finite"}
        assert detail


@given(case=cases(), seed=st.integers(0, 2**32))
def test_a_forged_packet_passes_and_reads_as_an_honest_packet_of_the_target_would(
    case: tuple[Compressor, Vector], seed: int
) -> None:
    q, target = case
    packet = q.forge(target, np.random.default_rng(seed))
    assert q.flaw(packet, len(target), target.dtype) is None
    out = q.decompress(packet)
    factor = target.dtype.type(q.norm_bound(len(target)))
    assert ((out == target * factor) | (out == 0)).all()
