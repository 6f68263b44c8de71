"""The laws of a compressor: expectation, variance, contraction, norm, uniform masks; and any packet is screened."""

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from strategies.compressors import (
    QSGD,
    Identity,
    Masked,
    Natural,
    PermK,
    RandK,
    ScaledSign,
    TopK,
    dither,
    half,
    packing,
)
from strategies.compressors.coordinates import indices, part
from strategies.compressors.dither import Dither, Powers
from strategies.compressors.half import Half
from strategies.method import Compressor, Packet, Vector
from tests.forms import FORMS, in_round

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
SEEDS = st.integers(0, 2**64 - 1)
NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32)
SLUGS = {
    "wrong kind", "wrong dimension", "wrong shape", "wrong dtype", "bad seed", "bad scale", "bad index", "bad code",
    "not finite",
}  # fmt: skip


def vectors(d: st.SearchStrategy[int]) -> st.SearchStrategy[Vector]:
    """Vectors of either type, from denormal to 1e30."""
    return d.flatmap(
        lambda n: st.sampled_from([np.float32, np.float64]).flatmap(lambda t: hnp.arrays(t, n, elements=NUMBERS))
    )


@given(form=st.sampled_from(FORMS), v=vectors(st.integers(1, 40)), seed=SEEDS, worker=st.integers(0, 3))
def test_a_packet_has_its_layout_passes_the_screening_and_reads_as_a_vector(
    form: Compressor, v: Vector, seed: int, worker: int
) -> None:
    q, d = form.of_round(seed, worker), len(v)
    before = v.copy()
    v.flags.writeable = False
    for packet in (q.compress(v, np.random.default_rng(seed)), q.forge(v, np.random.default_rng(seed))):
        layout = q.layout(d, v.dtype)
        marks = b"" if packet.marks is None else packet.marks.tobytes()
        assert (len(packet.values), packet.values.dtype, len(marks)) == (layout.count, layout.dtype, layout.marks)
        assert ((packet.seed is not None), (packet.scale is not None)) == (layout.seed, layout.scale)
        carried = len(packet.values.tobytes()) + len(marks) + 8 * (packet.seed is not None)
        assert layout.nbytes == carried + 8 * (packet.scale is not None)
        assert q.validate(packet, d, v.dtype) is None
        out = q.decompress(packet, v.dtype)
        assert (out.shape, out.dtype) == (v.shape, v.dtype)
        assert np.isfinite(out).all()
        opposite = q.opposite(packet)
        assert q.validate(opposite, d, v.dtype) is None
        np.testing.assert_array_equal(q.decompress(opposite, v.dtype), -out)
    np.testing.assert_array_equal(v, before)


@given(form=st.sampled_from(FORMS), v=vectors(st.integers(1, 40)), seed=SEEDS, worker=st.integers(0, 3))
def test_the_norm_grows_by_d_q_at_most(form: Compressor, v: Vector, seed: int, worker: int) -> None:
    q = form.of_round(seed, worker)
    out = q.decompress(q.compress(v, np.random.default_rng(seed)), v.dtype).astype(np.float64)
    length = np.linalg.norm(v.astype(np.float64))
    assert np.linalg.norm(out) <= q.norm_bound(len(v)) * length * (1 + 1e-6) + 1e-44


@given(
    form=st.sampled_from([q for q in FORMS if not q.unbiased]), v=vectors(st.integers(1, 40)), seed=st.integers(0, 99)
)
def test_a_biased_compressor_contracts(form: Compressor, v: Vector, seed: int) -> None:
    delta = form.contraction(len(v))
    assert 0 < delta <= 1
    assert form.omega(len(v)) == pytest.approx(1 - delta)
    w = v.astype(np.float64)
    error = form.decompress(form.compress(v, np.random.default_rng(seed)), v.dtype) - w
    assert error @ error <= (1 - delta) * (w @ w) * (1 + 1e-6) + 1e-85


def test_unbiased_compressors_contract_where_omega_is_below_1() -> None:
    for q in FORMS:
        assert q.contraction(20) == pytest.approx(1 - q.omega(20))
        assert q.omega(20) >= 0
        assert q.norm_bound(20) >= 1 or not q.unbiased


# --- exact: every outcome of the random words, equally often ---


def all_words(monkeypatch: pytest.MonkeyPatch, module: Any, words: np.ndarray) -> None:
    """Let a carrier draw these words, one a value; only NumPy can be made to."""
    monkeypatch.setattr(packing, "load_loops", lambda: None)
    monkeypatch.setattr(module, "uniform_bits", lambda rng, count, width: words[:count])


@pytest.mark.parametrize("value", [1.0, 1.25, 1.99951171875, 3.000244140625, 0.3330078125, 0.0001, -0.7, 2.0**-25])
@pytest.mark.parametrize(("name", "bits"), [("bfloat16", 16), ("float16", 13)])
def test_random_rounding_to_16_bits_is_unbiased_exactly(
    monkeypatch: pytest.MonkeyPatch, name: half.HalfName, bits: int, value: float
) -> None:
    """All values of the bits that are dropped occur once, so the mean is the value: to the last bit of the sum."""
    x = np.full(2**bits + 1, np.float32(value))
    x[-1] = 30000.0  # the scale is 1
    all_words(monkeypatch, half, np.arange(2**bits + 1, dtype=np.uint32))
    carrier = Half(name)
    codes, scale = carrier.write(x, np.random.default_rng(0))
    assert scale == 1.0
    out = carrier.read(codes, scale, len(x), F64, 1.0)[:-1]
    v = float(x[0])
    assert len(set(out)) <= 2
    below_2_to_minus_14 = name == "float16" and abs(v) < 2.0**-14
    assert np.mean(out) == pytest.approx(v, rel=0 if not below_2_to_minus_14 else 1e-6, abs=1e-12)
    assert np.mean((out - v) ** 2) <= carrier.omega(len(x)) * (v * v if not below_2_to_minus_14 else 30000.0**2)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("value", [1.0, 1.5, 1.25, 4 / 3, 1.015625, -3.75, 0.0])
def test_natural_compression_is_unbiased_exactly(monkeypatch: pytest.MonkeyPatch, dtype: Any, value: float) -> None:
    mantissa = 23 if dtype == F32 else 52
    all_words(
        monkeypatch,
        dither,
        np.arange(4096).astype(f"u{dtype.itemsize}") << np.array(mantissa - 12, f"u{dtype.itemsize}"),
    )
    v = math.ldexp(round(math.ldexp(value, 10)), -10)  # whose bits the 4096 words resolve
    x = np.full(4096, v, dtype)
    codes, scale = Powers().write(x, np.random.default_rng(0))
    out = Powers().read(codes, scale, 4096, F64, 1.0)
    assert np.mean(out) == v
    assert np.mean((out - v) ** 2) <= v * v / 8
    assert np.mean((out - v) ** 2) == pytest.approx(v * v / 8, rel=1e-3) or abs(v) != math.ldexp(
        round(math.ldexp(4 / 3, 10)), -10
    )


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("levels", [1, 2, 4, 64, 256])
@pytest.mark.parametrize("value", [0.0, 0.5, -0.25, 0.3125, 0.998046875, 1.0])
def test_dithering_is_unbiased_exactly(monkeypatch: pytest.MonkeyPatch, dtype: Any, levels: int, value: float) -> None:
    bits = 8 * dtype.itemsize
    every = np.arange(4096).astype(f"u{dtype.itemsize}") << np.array(bits - 12, f"u{dtype.itemsize}")
    all_words(monkeypatch, dither, np.concatenate((every, every[:1])))
    carrier = Dither(levels, "linf")
    x = np.full(4097, value, dtype)
    x[-1] = 1.0
    codes, scale = carrier.write(x, np.random.default_rng(0))
    out = carrier.read(codes, scale, 4097, F64, 1.0)[:-1]
    t = abs(value) * levels
    p = t - math.floor(t)
    assert np.mean(out) == value
    assert np.mean((out - value) ** 2) == p * (1 - p) / levels**2


def test_perm_k_is_unbiased_exactly_over_the_rotations() -> None:
    """Of any permutation a worker has each part once in n rotations: in each d/n coordinates on average, n-fold."""
    for d, n in ((7, 3), (3, 5), (8, 4)):
        v = np.random.default_rng(d).normal(size=d)
        workers = [PermK(parts=n).of_round(12, i) for i in range(n)]  # one rotation of all workers is all of one
        outs = np.array([q.decompress(q.compress(v, np.random.default_rng(0)), F64) for q in workers])
        np.testing.assert_allclose(outs.mean(axis=0), v, rtol=1e-15)
        np.testing.assert_allclose(((outs - v) ** 2).sum(axis=1).mean(), (n - 1) * (v @ v), rtol=1e-12)


@pytest.mark.parametrize(("d", "n"), [(6, 3), (5, 2), (40, 4), (3, 4)])
def test_parts_are_uniform_over_seeds(d: int, n: int) -> None:
    """Chi-square over seeds: who has a coordinate, and which pairs share a part."""
    owner, together, rounds = np.zeros((d, n)), np.zeros((d, d)), 3000
    for seed in range(rounds):
        i = seed % n
        mine = part(seed * 0x9E3779B97F4A7C15 % 2**64, d, n, i)
        owner[mine, i] += 1
        together[np.ix_(mine, mine)] += 1
    assert np.abs(owner.sum(axis=1) - rounds / n).max() < 5 * math.sqrt(rounds / n)
    sizes = [d // n + 1] * (d % n) + [d // n] * (n - d % n)
    expected = rounds * sum(m * (m - 1) for m in sizes) / n / (d * (d - 1))
    pairs = together[np.triu_indices(d, 1)]
    assert np.abs(pairs - expected).max() < 6 * math.sqrt(max(expected, 1))


# --- over many draws: five standard errors, fixed seeds ---

UNBIASED = [q for q in FORMS if q.unbiased]


@pytest.mark.parametrize("form", UNBIASED, ids=repr)
@pytest.mark.parametrize("shape", ["normal", "heavy", "equal"])
def test_expectation_and_variance_over_draws(form: Compressor, shape: str) -> None:
    d, draws = 24, 800
    rng = np.random.default_rng(2)
    v = {"normal": rng.normal(size=d), "heavy": rng.standard_cauchy(size=d), "equal": np.full(d, 0.7)}[shape]
    outs = np.empty((draws, d))
    for t in range(draws):
        q = form.of_round(int(rng.bit_generator.random_raw()), t % 4)
        outs[t] = q.decompress(q.compress(v, rng), F64)
    errors = ((outs - v) ** 2).sum(axis=1)
    standard_error = errors.std() / math.sqrt(draws)
    assert errors.mean() <= form.omega(d) * (v @ v) + 5 * standard_error + 1e-30
    spread = outs.std(axis=0) / math.sqrt(draws)
    # A standard error that was itself estimated from rare events may be too small: some such events are allowed for.
    slack = 10 * np.abs(outs - v).max() / draws + 1e-13 * np.abs(v)
    assert (np.abs(outs.mean(axis=0) - v) <= 5 * spread + slack).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(("levels", "d"), [(1, 9), (2, 50), (5, 30), (20, 12)])
def test_the_stated_variance_of_dithering_bounds_every_vector(levels: int, d: int, norm: dither.Norm) -> None:
    """The variance is norm^2/s^2 sum p(1-p) for any vector. A search for the worst stays below, and comes near."""
    carrier, rng = Dither(levels, norm), np.random.default_rng(0)

    def relative(v: Vector) -> float:
        length = np.linalg.norm(v) if norm == "l2" else np.abs(v).max()
        t = levels * np.abs(v) / length
        p = t - np.floor(t)
        return float(length**2 / levels**2 * (p * (1 - p)).sum() / (v @ v))

    worst = 0.0
    for _ in range(300):
        v = rng.normal(size=d) * np.exp(rng.normal() * rng.normal(size=d))
        worst = max(worst, relative(v))
    for size in np.linspace(0.001, 1, 400):
        v = np.full(d, size)
        v[0] = 1.0
        worst = max(worst, relative(v))
    worst = max(worst, relative(np.ones(d)))
    assert worst <= carrier.omega(d) * (1 + 1e-9)
    if norm == "linf" or d >= 4 * levels**2:
        assert worst >= 0.99 * carrier.omega(d)


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
    outs = np.array([q.decompress(Packet("rand-k", d, v[list(mask)], seed), F64) for mask, seed in seed_of.items()])
    np.testing.assert_allclose(outs.mean(axis=0), v, rtol=1e-12)
    variance = ((outs - v) ** 2).sum(axis=1).mean()
    np.testing.assert_allclose(variance, q.omega(d) * (v @ v), rtol=1e-12, atol=1e-12)


def test_expectation_and_variance_over_drawn_masks() -> None:
    q, d, draws = RandK(k=12), 123, 4000
    rng = np.random.default_rng(2)
    v = rng.normal(size=d)
    outs = np.array([q.decompress(q.compress(v, rng), F64) for _ in range(draws)])
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


# --- anything at all is screened ---


@given(
    form=st.sampled_from(FORMS),
    kind=st.sampled_from(["", "identity"]) | st.none(),
    dim=st.sampled_from([5, 5, 5, 6, -1]),
    values=st.none()
    | hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.uint8, np.int8, np.int16, np.uint16]),
        hnp.array_shapes(min_dims=0, max_dims=2, max_side=6, min_side=0),
    ),
    raw=st.binary(min_size=40, max_size=40),
    seed=st.none() | st.integers(-1, 2**64) | st.just(3),
    scale=st.none() | st.floats() | st.sampled_from([1.0, 2.0**127, 2.0**-126, 5e-324]),
    marks=st.none() | hnp.arrays(np.uint8, st.integers(0, 9)),
)
def test_any_packet_is_refused_with_a_reason_or_can_be_used(
    form: Compressor,
    kind: str | None,
    dim: int,
    values: Any,
    raw: bytes,
    seed: int | None,
    scale: float | None,
    marks: Any,
) -> None:
    q = in_round(form)
    layout = q.layout(5, F32)
    if values is None:  # of the right form, with any bits
        values = np.frombuffer(raw, layout.dtype, layout.count)
        seed = 3 if layout.seed else None
        marks = np.frombuffer(raw[-1:] if layout.marks else b"", np.uint8) if layout.marks else None
    packet = Packet(q.kind if kind is None else kind, dim, values, seed, scale, marks)
    reason = q.validate(packet, 5, F32)
    if reason is None:
        out = q.decompress(packet, F32)
        assert out.shape == (5,)
        assert out.dtype == np.float32
        assert np.isfinite(out).all()
        np.testing.assert_array_equal(q.decompress(q.opposite(packet), F32), -out)
    else:
        slug, _, detail = reason.partition(": ")
        assert slug in SLUGS
        assert detail


@given(
    form=st.sampled_from([Identity(), RandK(ratio=0.3), Masked(ratio=0.4), PermK(parts=4), TopK(ratio=0.5)]),
    target=vectors(st.integers(1, 40)),
    seed=SEEDS,
)
def test_a_forged_packet_reads_as_an_honest_packet_of_the_target_would(
    form: Compressor, target: Vector, seed: int
) -> None:
    q = in_round(form)
    out = q.decompress(q.forge(target, np.random.default_rng(seed)), target.dtype)
    factor = target.dtype.type(q.norm_bound(len(target)))
    assert ((out == target * factor) | (out == 0)).all()


def test_peaks_see_both_signs_and_what_is_not_finite() -> None:
    assert packing.peak(np.array([1.0, -3.0])) == 3.0
    assert packing.peak(np.zeros(0)) == 0.0
    assert math.isnan(packing.peak(np.array([1.0, np.nan])))
    assert packing.peak(np.array([1.0, -np.inf])) == math.inf


def test_statements_of_the_quantisers() -> None:
    assert Natural().omega(100) == pytest.approx(0.125)
    assert Natural().norm_bound(100) == 2.0
    assert QSGD(levels=4).norm_bound(16) == pytest.approx(2.0)
    assert ScaledSign().contraction(50) == pytest.approx(0.02)
