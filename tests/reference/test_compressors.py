"""Compressors against transcriptions in plain Python numbers, and compiled loops against NumPy."""

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from strategies import parallel
from strategies.compressors import (
    QSGD,
    Identity,
    Natural,
    PermK,
    RandK,
    ScaledSign,
    TopK,
    choices,
    coordinates,
    packing,
)
from strategies.compressors.carriers import Carrier
from strategies.compressors.coordinates import indices
from strategies.compressors.dither import Dither, Powers, Signs
from strategies.compressors.half import Half
from strategies.method import Packet, Vector

WORD = 2**64
F64 = np.dtype(np.float64)


def slow_word(seed: int, i: int) -> int:
    """Return word i, from 0, of the SplitMix64 stream."""
    z = (seed + (i + 1) * 0x9E3779B97F4A7C15) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def slow_indices(seed: int, d: int, k: int) -> list[int]:
    """Draw one coordinate after the other, passing over those seen, until k (or the d - k to leave out) are there."""
    seen: set[int] = set()
    i = 0
    while len(seen) < min(k, d - k):
        word = slow_word(seed, i)
        i += 1
        if word < WORD // d * d:
            seen.add(word % d)
    return sorted(seen if 2 * k <= d else set(range(d)) - seen)


@pytest.mark.parametrize(("d", "k"), [(1, 1), (2, 1), (7, 3), (7, 4), (123, 12), (123, 123), (1000, 499), (1000, 501)])
@pytest.mark.parametrize("seed", [0, 1, 2**63, WORD - 1, 0xDEADBEEF])
def test_masks_are_those_of_the_description(seed: int, d: int, k: int) -> None:
    assert indices(seed, d, k).tolist() == slow_indices(seed, d, k)


def slow_part(seed: int, d: int, n: int, i: int) -> list[int]:
    """Put the positions of worker i's part through the permutation, one at a time."""
    at = 0
    while slow_word(seed, at) >= WORD // n * n:
        at += 1
    p = (i + slow_word(seed, at)) % n
    bits = max(1, (d - 1).bit_length())
    keys = [slow_word(seed ^ 0x5045524D, i) for i in range(12)]
    part = []
    for t in range(p * d // n, (p + 1) * d // n):
        x = t
        while True:
            for add, multiply in zip(keys[::2], keys[1::2], strict=True):
                x = (x + add) * (multiply | 1) % 2**bits
                x ^= x >> ((bits + 1) // 2)
            if x < d:
                break
        part.append(x)
    return part


@pytest.mark.parametrize(("d", "n"), [(1, 1), (2, 3), (10, 3), (123, 20), (1000, 7)])
@pytest.mark.parametrize("seed", [0, 2**63, WORD - 1, 0xDEADBEEF])
def test_parts_are_those_of_the_description(seed: int, d: int, n: int) -> None:
    for i in range(n):
        assert coordinates.part(seed, d, n, i).tolist() == slow_part(seed, d, n, i)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reading_is_scaling_on_the_mask(dtype: type) -> None:
    d, k, seed = 30, 7, 99
    values: Vector = np.random.default_rng(0).normal(size=k).astype(dtype)
    expected = [0.0] * d
    for j, value in zip(slow_indices(seed, d, k), values.tolist(), strict=True):
        expected[j] = value * d / k
    out = RandK(k=k).decompress(Packet("rand-k", d, values, seed), np.dtype(dtype))
    np.testing.assert_allclose(out, np.array(expected), rtol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 20, 50])
def test_top_k_is_a_stable_sort(k: int) -> None:
    for seed in range(20):
        v = np.random.default_rng(seed).integers(-5, 6, 50).astype(np.float64)
        kept = sorted(range(50), key=lambda j: -abs(v[j]))[:k]  # sorted() keeps equals in order
        expected = [v[j] if j in kept else 0.0 for j in range(50)]
        out = TopK(k=k).decompress(TopK(k=k).compress(v, np.random.default_rng(0)), F64)
        assert out.tolist() == expected


@pytest.mark.parametrize(("levels", "norm"), [(1, "l2"), (4, "linf"), (100, "l2"), (1000, "linf")])
def test_dithering_is_that_of_the_description(levels: int, norm: Any) -> None:
    """In float64: the upper level where a uniform number of 53 bits is below the distance to the lower one."""
    x = np.random.default_rng(1).normal(size=40)
    carrier = Dither(levels, norm)
    codes, scale = carrier.write(x, np.random.default_rng(2))
    seed = int(np.random.default_rng(2).bit_generator.random_raw())
    length = math.sqrt(sum(v * v for v in x.tolist())) if norm == "l2" else max(map(abs, x.tolist()))
    assert scale == pytest.approx(length)
    expected = []
    for j, v in enumerate(x.tolist()):
        t = levels * abs(v) / length
        up = (slow_word(seed, j) >> 11) / 2**53 < t - math.floor(t)
        expected.append(math.copysign(length * (math.floor(t) + up) / levels, v))
    np.testing.assert_allclose(carrier.read(codes, scale, 40, F64, 1.0), expected, rtol=1e-12)


def test_natural_compression_is_that_of_the_description() -> None:
    """In float64: the upper power of two where 52 random bits and the mantissa overflow."""
    x = np.random.default_rng(1).normal(size=40)
    codes, scale = Powers().write(x, np.random.default_rng(2))
    seed = int(np.random.default_rng(2).bit_generator.random_raw())
    expected = []
    for j, v in enumerate(x.tolist()):
        mantissa, exponent = math.frexp(abs(v))  # in [1/2, 1)
        up = slow_word(seed, j) % 2**52 / 2**52 + (2 * mantissa - 1) >= 1
        expected.append(math.copysign(math.ldexp(1.0, exponent if up else exponent - 1), v))
    assert Powers().read(codes, scale, 40, F64, 1.0).tolist() == expected


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, 40_000])
def test_sums_are_sums(length: int) -> None:
    x = np.random.default_rng(0).normal(size=length) * 1e3
    assert packing.l1(x) == pytest.approx(math.fsum(map(abs, x.tolist())), rel=1e-13)
    assert packing.l2(x) == pytest.approx(math.sqrt(math.fsum(v * v for v in x.tolist())), rel=1e-13)
    for scale in (1e-200, 1e200):  # whose squares are out of range
        assert packing.l2(x * scale) == pytest.approx(packing.l2(x) * scale, rel=1e-12)


# --- compiled loops: the same bits as NumPy ---


def both(monkeypatch: pytest.MonkeyPatch, f: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """Return what NumPy and what the compiled loops make of f(*args), for vectors of any length."""
    with monkeypatch.context() as patch:
        patch.setattr(packing, "load_loops", lambda: None)
        plain = f(*args)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "LONG", 1)
        patch.setattr(packing, "WORTH_IT", 1)
        return plain, f(*args)


@pytest.mark.parametrize("n", [1, 2, 5, 512, 1025, 3000])
@pytest.mark.parametrize(
    "carrier",
    [
        Half("float16"), Half("bfloat16"), Dither(1, "l2"), Dither(7, "linf"), Dither(127, "l2"), Dither(128, "linf"),
        Dither(20_000, "l2"), Powers(), Signs(),
    ],
    ids=repr,
)  # fmt: skip
def test_compiled_rounding_is_the_same_to_the_last_bit(
    monkeypatch: pytest.MonkeyPatch, carrier: Carrier, n: int
) -> None:
    rng = np.random.default_rng(n)
    for x in (
        rng.normal(size=n),
        rng.normal(size=n) * np.exp(20 * rng.normal(size=n)),
        np.zeros(n),
        -np.ones(n) * 3e38,
    ):
        v = np.clip(x, -3.4e38, 3.4e38).astype(np.float32)
        (a, scale), (b, other) = both(monkeypatch, lambda v: carrier.write(v, np.random.default_rng(5)), v)
        assert (a.dtype, a.tobytes(), scale) == (b.dtype, b.tobytes(), other)
        if carrier.validate(a, scale, n, v.dtype, 1.0) is not None:
            continue  # an l2 norm beyond the largest float
        read = both(monkeypatch, lambda a, s: carrier.read(a, s, n, np.dtype(np.float32), 1.0), a, scale)
        assert read[0].tobytes() == read[1].tobytes()


@pytest.mark.parametrize("d", [1, 2, 63, 64, 65, 128, 1000])
def test_compiled_masks_are_the_same(monkeypatch: pytest.MonkeyPatch, d: int) -> None:
    for k in sorted({1, d // 10, d // 3, d // 2, d // 2 + 1, d - 1, d} - {0}):
        for seed in (0, 7, 2**64 - 1):
            a, b = both(monkeypatch, lambda s, k: indices(s, d, k), seed, k)
            assert (a.dtype, a.tolist()) == (b.dtype, b.tolist())


@pytest.mark.parametrize(("d", "n"), [(1, 1), (10, 3), (1000, 7), (64, 2)])
def test_compiled_parts_are_the_same(monkeypatch: pytest.MonkeyPatch, d: int, n: int) -> None:
    for seed in (0, 7, 2**64 - 1):
        a, b = both(monkeypatch, lambda s: coordinates.part(s, d, n, n - 1), seed)
        assert (a.dtype, a.tolist()) == (b.dtype, b.tolist())


@pytest.mark.parametrize("width", [1, 2, 4])
def test_compiled_reading_of_packed_codes_is_the_same(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    packed = np.random.default_rng(0).integers(0, 256, 300).astype(np.uint8)
    for count in (2400 // width, 2400 // width - 1):
        for bits in (packed, packed & np.uint8(0x11)):
            a, b = both(monkeypatch, lambda p, n: packing.read_packed(p, width, n, np.float32(0.3)), bits, count)
            assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())
    for levels in range(1, 1 << (width - 1)):
        for start in range(0, 300, 2):  # short, so that some exceed and some do not
            bits = packed[start : start + 2]
            a, b = both(monkeypatch, lambda p, s: packing.exceeds(p, width, s), bits, levels)
            assert a == b == (packing.largest(bits, width) > levels)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_compiled_reading_of_16_bits_is_the_same(monkeypatch: pytest.MonkeyPatch, name: Any) -> None:
    """All of them, also denormal ones."""
    codes = np.arange(2**16, dtype=np.uint16)
    codes = codes[(codes & np.uint16(0x7FFF)) < (0x7C00 if name == "float16" else 0x7F80)]
    read = lambda: Half(name).read(codes, 0.25, len(codes), np.dtype(np.float32), 2.0)  # noqa: E731
    a, b = both(monkeypatch, read)
    assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())


def test_compiled_loops_do_not_write_beyond_the_coordinates_that_were_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "LONG", 1)
    monkeypatch.setattr(packing, "WORTH_IT", 1)

    def read(k: int, d: int, marks: list[int]) -> list[float]:
        packet = Packet("top-k", d, np.ones(k, np.float32), marks=np.array(marks, np.uint8))
        return TopK(k=k).decompress(packet, np.dtype(np.float32)).tolist()  # type: ignore[no-any-return]

    assert np.flatnonzero(read(3, 12, [0b101, 1])).tolist() == [0, 2, 8]
    for k in (2, 4):
        with pytest.raises(ValueError, match=f"3 coordinates, expected {k}: the packet was not screened"):
            read(k, 12, [0b101, 1])
    with pytest.raises(ValueError, match="bits behind the last coordinate: the packet was not screened"):
        read(3, 12, [0b101, 128])
    with pytest.raises(ValueError, match="8000, expected one below 8000: the packet was not screened"):
        read(2, 8000, [0, 0, 0, 0, 0x40, 0x1F, 0, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [5, 64, 1000, 3000])
def test_compiled_moves_of_values_are_the_same(monkeypatch: pytest.MonkeyPatch, d: int, dtype: type) -> None:
    """Also of float64 vectors, whose masks are bits too, and of those that do not lie in one piece."""
    v: Vector = np.random.default_rng(d).normal(size=2 * d).astype(dtype)
    for x in (v[:d], v[::2]):
        for k in (1, d // 3, d):
            kept = indices(9, d, k).tolist()
            a, b = both(monkeypatch, lambda x, k: choices.take(x, coordinates.mask(9, d, k), k), x, k)
            assert a.tolist() == b.tolist() == x[kept].tolist()
            for y in (a, np.repeat(a, 2)[::2]):
                a, b = both(monkeypatch, lambda y, k: choices.put(y, coordinates.mask(9, d, k), d), y, k)
                assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())
                assert a[kept].tolist() == y.tolist()
                assert np.count_nonzero(a) == k
        few = coordinates.part(9, d, 3, 1)
        a, b = both(monkeypatch, lambda x, few: choices.take(x, few, len(few)), x, few)
        assert a.tolist() == b.tolist() == [x[j] for j in few]
        a, b = both(monkeypatch, lambda y, few: choices.put(y, few, d), a, few)
        assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())
        assert a[few].tolist() == [x[j] for j in few]
        assert np.count_nonzero(a) == len(few)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_long_vectors_are_cut_into_the_same_parts_by_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, threads: str
) -> None:
    """Vectors long enough that parts begin in the middle; NumPy has no parts at all."""
    from strategies.compressors import fast_bits, fast_choice  # they import numba

    monkeypatch.setattr(fast_bits, "_LEAST", 1 << 10)
    monkeypatch.setattr(fast_choice, "_MARKED", 1 << 10)
    monkeypatch.setattr(packing, "SUMMED", 1 << 12)
    monkeypatch.setattr("strategies.compressors.fast_rounding.SUMMED", 1 << 12)
    monkeypatch.setenv(parallel.THREADS, threads)
    d = 50_001
    v = np.random.default_rng(0).normal(size=d).astype(np.float32)
    for form in (
        RandK(k=d // 10), TopK(k=d // 10), TopK(k=9), PermK(parts=2), Identity(values="float16"), QSGD(levels=1),
        QSGD(levels=7), QSGD(levels=100), QSGD(levels=1000, norm="linf"), Natural(), ScaledSign(),
    ):  # fmt: skip
        one: Any = form.of_round(5, 0)
        a, b = both(monkeypatch, lambda q: q.compress(v, np.random.default_rng(1)), one)
        assert (a.scale, a.values.tobytes()) == (b.scale, b.values.tobytes())
        assert (None if a.marks is None else a.marks.tobytes()) == (None if b.marks is None else b.marks.tobytes())
        a, b = both(monkeypatch, lambda q, p: (q.validate(p, d, v.dtype), q.decompress(p, v.dtype).tobytes()), one, a)
        assert a == b
        assert a[0] is None


def test_compiled_peaks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for values in ([], [0.0], [1.0, -3.0], [-1e-45, 0.0], [3.4e38, -3.4e38], [np.inf, 1.0], [-np.inf]):
        a, b = both(monkeypatch, lambda v: packing.peak(np.array(v, np.float32)), values)
        assert a == b
    a, b = both(monkeypatch, lambda: packing.peak(np.array([np.inf, -np.nan, 1.0], np.float32)))
    assert math.isnan(a)
    assert math.isnan(b)


def test_compiled_top_k_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for v in (rng.normal(size=500), rng.integers(-3, 4, 500), np.zeros(500), np.full(500, np.nan), np.full(500, 1e-42)):
        x = v.astype(np.float32)
        for k in (1, 7, 250, 499, 500):
            a, b = both(monkeypatch, lambda x, k: choices.bitmap(choices.largest_k(x, k), len(x)), x, k)
            assert a.tolist() == b.tolist()


@pytest.mark.parametrize("kind", ["normal", "equal", "mostly 0", "one far off", "two values", "NaN"])
def test_compiled_top_k_finds_the_largest_of_long_vectors(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Long enough that a sample says little, or the wrong thing."""
    d = 30_000
    x = np.random.default_rng(0).normal(size=d).astype(np.float32)
    if kind == "equal":
        x[:] = -2.0
    elif kind == "mostly 0":
        x[: d - 100] = 0.0
    elif kind == "one far off":
        x[7] = 1e38
    elif kind == "two values":
        x = np.sign(x)
    elif kind == "NaN":
        x[::50] = np.nan
    for k in (1, 99, 101, 3000, d - 1):
        a, b = both(monkeypatch, lambda k: choices.bitmap(choices.largest_k(x, k), d), k)
        assert a.tobytes() == b.tobytes()
        assert int(np.bitwise_count(a).sum()) == k


def test_long_vectors_load_the_compiled_loops_and_others_use_them_once_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "strategies.compressors.fast_packing", raising=False)
    assert packing.fast(np.zeros(packing.LONG - 1, np.float32)) is None
    assert "strategies.compressors.fast_packing" not in sys.modules
    packing.load_loops.cache_clear()
    packing.prepare(packing.LONG)
    assert packing.fast(np.zeros(packing.WORTH_IT, np.float32)) is not None
    assert packing.fast(np.zeros(packing.WORTH_IT - 1, np.float32)) is None
    assert packing.fast(np.zeros(packing.LONG, np.float64)) is None
    assert packing.fast(np.zeros(2 * packing.LONG, np.float32)[::2]) is None


def test_without_numba_long_vectors_are_handled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "load_loops", lambda: None)
    v = np.random.default_rng(0).normal(size=packing.LONG).astype(np.float32)
    form = RandK(ratio=0.01, levels=7)
    packet = form.compress(v, np.random.default_rng(1))
    assert form.validate(packet, len(v), v.dtype) is None
    assert np.count_nonzero(form.decompress(packet, v.dtype)) > 100
