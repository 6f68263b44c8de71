"""Rounded values: codes by hand, what the ends of the range become, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest

from strategies.compressors import QSGD, Identity, Natural, RandK, ScaledSign, TopK, carriers, dither, half, packing
from strategies.compressors.dither import Dither, Powers
from strategies.compressors.half import Half
from strategies.method import Compressor, Packet, PacketLayout

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def read(q: Compressor, v: Any, dtype: Any = F32, seed: int = 0) -> list[float]:
    x = np.array(v, dtype)
    packet = q.compress(x, rng(seed))
    assert q.validate(packet, len(x), x.dtype) is None
    values: list[float] = q.decompress(packet, x.dtype).tolist()
    return values


# --- packing ---


def test_codes_lie_in_planes() -> None:
    four = packing.pack(np.array([1, 2, 3, 4, 5], np.uint8), 4)
    assert four.tolist() == [1 | 4 << 4, 2 | 5 << 4, 3]
    two = packing.pack(np.array([1, 2, 3, 0, 1], np.uint8), 2)
    assert two.tolist() == [1 | 3 << 2 | 1 << 4, 2]
    one = packing.pack(np.array([1, 0, 1, 1, 0, 0, 0, 0, 1], np.uint8), 1)
    assert one.tolist() == [1 | 1 << 1 | 1 << 4, 0 | 1 << 1]


@pytest.mark.parametrize(("width", "low", "high"), [(1, -1, 0), (2, -2, 1), (4, -8, 7)])
def test_packed_codes_come_back_with_their_signs(width: int, low: int, high: int) -> None:
    for count in range(1, 20):
        codes = rng(count).integers(low, high + 1, count).astype(np.int8)
        packed = packing.pack(codes.view(np.uint8), width)
        assert len(packed) == packing.packed_bytes(count, width) == math.ceil(count * width / 8)
        np.testing.assert_array_equal(packing.unpack(packed, width, count), codes)
        assert packing.largest(packed, width) == max(abs(codes.astype(int)))
        assert not packing.filling(packed, width, count)


@pytest.mark.parametrize(("width", "count"), [(1, 9), (2, 5), (4, 5)])
def test_every_filling_bit_is_seen(width: int, count: int) -> None:
    h = packing.packed_bytes(count, width)
    for place in range(count, 8 // width * h):
        plane, j = divmod(place, h)
        for bit in range(width):
            packed = np.zeros(h, np.uint8)
            packed[j] = 1 << (plane * width + bit)
            assert packing.filling(packed, width, count)


# --- QSGD ---


def test_qsgd_reads_multiples_of_the_norm() -> None:
    assert read(QSGD(levels=5), [3.0, 0.0, -4.0]) == [3.0, 0.0, -4.0]  # norm 5: levels 3 and 4 exactly
    assert set(read(QSGD(levels=1), [3.0, 0.0, -4.0])) <= {-5.0, 0.0, 5.0}
    packet = QSGD(levels=5).compress(np.array([3.0, 0.0, -4.0]), rng())
    assert (packet.scale, packet.values.tolist()) == (5.0, [3 | (-4 & 15) << 4, 0])


@pytest.mark.parametrize(
    ("levels", "count", "dtype"),
    [(1, 3, "u1"), (2, 5, "u1"), (7, 5, "u1"), (8, 10, "i1"), (127, 10, "i1"), (128, 10, "i2"), (32767, 10, "i2")],
)
def test_qsgd_codes_are_as_wide_as_they_need(levels: int, count: int, dtype: str) -> None:
    assert QSGD(levels=levels).layout(10, F32) == PacketLayout(count, np.dtype(dtype), scale=True)


def test_qsgd_states_its_variance() -> None:
    assert QSGD(levels=1).omega(100) == 9.0  # sqrt(d)/s - 1
    assert QSGD(levels=5).omega(100) == 1.0  # both forms meet at d = 4 s^2
    assert QSGD(levels=10).omega(100) == 0.25  # d/(4 s^2)
    assert QSGD(levels=2, norm="linf").omega(13) == 0.5  # (sqrt(1 + 12/4) - 1)/2
    assert QSGD(levels=10).contraction(100) == 0.75


def test_the_largest_value_is_exact_where_it_is_the_norm() -> None:
    for seed in range(20):
        assert max(read(QSGD(levels=7, norm="linf"), [0.3, -0.7, 2.5], F64, seed)) == 2.5


@pytest.mark.parametrize("q", [QSGD(levels=3), QSGD(levels=90, norm="linf"), QSGD(levels=9000)])
@pytest.mark.parametrize(("dtype", "tiny"), [(F32, 1e-45), (F64, 5e-324)])
def test_vectors_of_the_smallest_numbers(q: Compressor, dtype: Any, tiny: float) -> None:
    v = np.array([tiny, 0.0, -2 * tiny, 4 * tiny], dtype)
    packet = q.compress(v, rng())
    assert q.validate(packet, 4, dtype) is None
    assert np.abs(q.decompress(packet, dtype)).max() <= 10 * float(np.abs(v).max())


def test_zero_stays_zero() -> None:
    for q in (QSGD(levels=3), QSGD(levels=3, norm="linf"), Natural(), ScaledSign(), Identity(values="float16")):
        assert read(q, [0.0, -0.0, 0.0]) == [0.0] * 3


def coded(codes: Any, dtype: Any, scale: float | None, kind: str = "qsgd", dim: int = 3) -> Packet:
    return Packet(kind, dim, np.array(codes, dtype), scale=scale)


@pytest.mark.parametrize(
    ("q", "packet", "reason"),
    [
        (QSGD(levels=100), coded([1, 2, -100], "i1", 1.0), None),
        (QSGD(levels=100), coded([1, 2, -101], "i1", 1.0), "bad code: level 101, expected at most 100"),
        (QSGD(levels=127), coded([1, 2, -128], "i1", 1.0), "bad code: level 128, expected at most 127"),
        (QSGD(levels=300), coded([301, 0, 0], "i2", 1.0), "bad code: level 301, expected at most 300"),
        (QSGD(levels=32767), coded([-32768, 0, 0], "i2", 1.0), "bad code: level 32768, expected at most 32767"),
        (QSGD(levels=1), coded([0b10], "u1", 1.0), "bad code: level 2, expected at most 1"),
        (QSGD(levels=1), coded([0b1000000], "u1", 1.0), "bad code: bits behind the last code, expected 0"),
        (QSGD(levels=5), coded([6, 0], "u1", 1.0), "bad code: level 6, expected at most 5"),
        (QSGD(levels=5), coded([0, 16], "u1", 1.0), "bad code: bits behind the last code, expected 0"),
        (QSGD(levels=5), coded([0, 0, 0], "u1", 1.0), "wrong shape: 3 values, expected 2"),
        (QSGD(levels=100), coded([1, 2, 3], "u1", 1.0), "wrong dtype: uint8, expected int8"),
        (QSGD(levels=100), coded([1, 2, 3], "i1", None), "bad scale: None, expected a number"),
        (QSGD(levels=100), coded([1, 2, 3], "i1", math.nan), "not finite: scale nan"),
        (QSGD(levels=100), coded([0, 0, 0], "i1", math.inf), "not finite: scale inf"),
        (QSGD(levels=100), coded([1, 2, 3], "i1", -1.0), "bad scale: -1, expected none below 0"),
        (QSGD(levels=1), coded([0], "u1", 1e39), "not finite: scale 1e+39 overflows float32 when multiplied by 1"),
        (QSGD(levels=4), coded([4, 0], "u1", 1e39), "not finite: values overflow float32 when multiplied by 2.5e+38"),
        (QSGD(levels=4), coded([1, 0], "u1", 1e39), None),
        (Natural(), coded([1, 2, 255], "u1", 2.0, "natural"), None),
        (Natural(), coded([1, 2, 255], "u1", 3.0, "natural"), "bad scale: 3, expected a power of two"),
        (Natural(), coded([1, 2, 255], "u1", 0.0, "natural"), "bad scale: 0, expected a power of two"),
        (Natural(), coded([0, 0, 0], "u1", -2.0, "natural"), "bad scale: -2, expected none below 0"),
        (Natural(), coded([127, 0, 0], "u1", 2.0**127, "natural"), None),
        (
            Natural(),
            coded([126, 0, 0], "u1", 2.0**128, "natural"),
            "not finite: scale 3.40282e+38 overflows float32 when multiplied by 1",
        ),
        (ScaledSign(), coded([0b111], "u1", 1.0, "scaled-sign"), None),
        (ScaledSign(), coded([0b111], "u1", 0.0, "scaled-sign"), None),
        (ScaledSign(), coded([0b1111], "u1", 1.0, "scaled-sign"), "bad code: bits behind the last code, expected 0"),
        (ScaledSign(), coded([0b111], "u1", math.nan, "scaled-sign"), "not finite: scale nan"),
        (
            ScaledSign(),
            coded([0b111], "u1", 1e40, "scaled-sign"),
            "not finite: scale 1e+40 overflows float32 when multiplied by 1",
        ),
    ],
)
def test_codes_and_scales_are_screened(q: Compressor, packet: Packet, reason: str | None) -> None:
    assert q.validate(packet, 3, F32) == reason
    if reason is None:
        assert np.isfinite(q.decompress(packet, F32)).all()


# --- natural compression ---


@pytest.mark.parametrize("dtype", [F32, F64])
def test_natural_takes_a_vector_of_zeros(dtype: Any) -> None:
    """As the difference of two gradients is where the model has not moved."""
    assert read(Natural(), [0.0, -0.0], dtype) == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [F32, F64])
def test_powers_of_two_are_exact(dtype: Any) -> None:
    v = [1.0, -2.0, 0.0, 2.0**-100, -(2.0**20), 2.0**-105]
    for seed in range(5):
        assert read(Natural(), v, dtype, seed) == v


def test_natural_codes_by_hand() -> None:
    # The scale is the power of two above the largest: 8. 4 is one below it, so 126; -1 is three below.
    packet = Natural().compress(np.array([4.0, -1.0, 0.0]), rng())
    assert (packet.scale, packet.values.tolist()) == (8.0, [126, 0x80 | 124, 0])


def test_a_value_becomes_a_neighbouring_power_of_two() -> None:
    seen = {read(Natural(), [3.0, -0.1], F32, seed)[0] for seed in range(30)}
    assert seen == {2.0, 4.0}
    assert {read(Natural(), [3.0, -0.1], F32, seed)[1] for seed in range(30)} == {-0.0625, -0.125}


@pytest.mark.parametrize(("dtype", "top"), [(F32, 127), (F64, 1023)])
def test_the_largest_numbers_become_the_largest_power_of_two(dtype: Any, top: int) -> None:
    largest = float(np.finfo(dtype).max)
    for seed in range(10):
        assert read(Natural(), [largest, -largest], dtype, seed) == [2.0**top, -(2.0**top)]


def test_denormals_are_values_like_others() -> None:
    tiny = float(np.float32(1e-45))
    for seed in range(10):
        assert read(Natural(), [tiny, -4 * tiny], F32, seed) == [tiny, -4 * tiny]
        assert abs(read(Natural(), [3 * tiny], F32, seed)[0]) in (2 * tiny, 4 * tiny)


def test_what_is_far_below_the_largest_becomes_zero() -> None:
    assert read(Natural(), [1.0, 2.0**-125, 2.0**-126], F64) == [1.0, 2.0**-125, 0.0]


# --- scaled sign ---


def test_scaled_sign_by_hand() -> None:
    assert read(ScaledSign(), [1.0, -2.0, 0.0, 5.0], F64) == [2.0, -2.0, 2.0, 2.0]
    packet = ScaledSign().compress(np.array([1.0, -2.0, 0.0, 5.0]), rng())
    assert (packet.scale, packet.values.tolist()) == (2.0, [0b10])
    assert (ScaledSign().omega(4), ScaledSign().contraction(4), ScaledSign().norm_bound(4)) == (0.75, 0.25, 1.0)


# --- 16 bits ---


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_what_fits_16_bits_is_exact(name: half.HalfName, dtype: Any) -> None:
    v = [1.0, -1.5, 0.0, 2.0**-20, 1.9921875, -0.0]
    for scale in (1.0, 2.0**-100, 2.0**100):
        x = (np.array(v) * scale).tolist()
        assert read(Identity(values=name), x, dtype) == x


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_codes_of_16_bits_are_those_of_the_format(name: half.HalfName) -> None:
    x = np.array([1.0, -1.5, 0.0, 2.0**-28, 0.75], np.float32)
    codes, scale = Half(name).write(x, rng())
    assert scale == 2.0**-14  # 1.5 comes to lie between 2^14 and 2^15
    scaled = x * np.float32(2.0**14)
    expected = scaled.astype(np.float16).view(np.uint16) if name == "float16" else scaled.view(np.uint32) >> 16
    assert codes.tolist() == expected.tolist()


@pytest.mark.parametrize(("name", "last"), [("float16", 2.0**-10), ("bfloat16", 2.0**-7)])
def test_rounding_at_random_and_to_the_nearest(name: half.HalfName, last: float) -> None:
    v = [1.0 + 0.75 * last, 1.0]
    assert {read(Identity(values=name), v, F32, seed)[0] for seed in range(30)} == {1.0, 1.0 + last}
    assert read(TopK(k=2, values=name), v) == [1.0 + last, 1.0]
    assert read(TopK(k=2, values=name), [1.0 + last / 2, 1.0 + last * 1.5]) == [1.0, 1.0 + 2 * last]  # to even


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("dtype", "size"), [(F32, 1e38), (F32, 3e38), (F32, 1e-38), (F32, 3e-45), (F64, 1e308), (F64, 1e-300)]
)
def test_neither_overflow_nor_underflow(name: half.HalfName, dtype: Any, size: float) -> None:
    v = np.array([1.0, -0.3, 1e-3], dtype) * dtype.type(size)
    out = np.array(read(Identity(values=name), v, dtype))
    np.testing.assert_allclose(out, v.astype(np.float64), rtol=2.0**-7, atol=2.0**-38 * size)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_16_bits_are_screened(name: half.HalfName) -> None:
    q, infinite = Identity(values=name), 0x7C00 if name == "float16" else 0x7F80

    def flaw(codes: list[int], scale: float | None) -> str | None:
        return q.validate(Packet("identity", 2, np.array(codes, np.uint16), scale=scale), 2, F32)

    assert flaw([1, 0x8001], 1.0) is None
    assert flaw([infinite, 0], 1.0) == "not finite: NaN or infinite values"
    assert flaw([0, 0x8000 | infinite + 1], 1.0) == "not finite: NaN or infinite values"
    assert flaw([1, 2], 3.0) == "bad scale: 3, expected a power of two"
    assert flaw([1, 2], math.inf) == "not finite: scale inf"
    assert flaw([infinite - 1, 2], 2.0**127) == "not finite: values overflow float32 when multiplied by 1.70141e+38"


def test_the_factor_may_overflow_too() -> None:
    q = RandK(k=1, values="float16")
    packet = Packet("rand-k", 8, np.array([0x3C00], np.uint16), 5, 2.0**125)  # 1.0
    assert q.validate(packet, 8, F32) == "not finite: scale 4.25353e+37 overflows float32 when multiplied by 8"
    assert q.validate(packet, 8, F64) is None


# --- settings, and what randomness is taken ---


@pytest.mark.parametrize("levels", [0, -1, 32768])
def test_levels_out_of_bounds_are_refused(levels: int) -> None:
    with pytest.raises(ValueError, match=f"levels = {levels}: must be at least 1 and at most 32767"):
        QSGD(levels=levels)


def test_equal_generators_give_equal_packets() -> None:
    v = rng(1).normal(size=50)
    for q in (QSGD(levels=3), Natural(), Identity(values="float16"), RandK(k=9, levels=3)):
        a, b, c = (q.compress(v, rng(seed)) for seed in (5, 5, 6))
        assert a.values.tobytes() == b.values.tobytes()
        assert a.values.tobytes() != c.values.tobytes()


def test_random_words_of_32_bits_by_hand() -> None:
    for seed in (1, 3, 2**63):
        bits = np.random.default_rng(seed).bit_generator
        low, high = (lambda word: (word & 0xFFFFFFFF, word >> 32))(int(bits.random_raw()))
        expected = []
        for i in range(5):
            z = (i + low) % 2**32
            z = (z ^ z >> 16) * 0x7FEB352D % 2**32
            z = ((z ^ z >> 15) + high) * 0x846CA68B % 2**32
            expected.append(z ^ z >> 16)
        assert carriers.uniform_bits(rng(seed), 5, 32).tolist() == expected


def test_random_words_of_32_bits_are_even_in_every_bit_and_between_neighbours_and_seeds() -> None:
    """Each count is binomial: 65536 tosses, standard deviation 128."""
    n = 2**16
    one, two = carriers.uniform_bits(rng(1), n, 32), carriers.uniform_bits(rng(2), n, 32)
    for words in (one, two, one ^ two, one[1:] ^ one[:-1], one ^ (one >> np.uint32(1))):
        for bit in range(31):
            assert abs(int(np.count_nonzero(words >> np.uint32(bit) & np.uint32(1))) - len(words) / 2) < 6 * 128
    table = np.bincount(one >> np.uint32(22), minlength=1024)  # 64 in each, chi-square with 1023 degrees of freedom
    assert 1023 - 6 * 45.3 < float(((table - 64.0) ** 2 / 64.0).sum()) < 1023 + 6 * 45.3


def test_carriers_of_nothing() -> None:
    """A part of perm-k may be empty."""
    nothing = np.zeros(0, np.float32)
    for carrier in (Half("float16"), Dither(1, "l2"), Dither(200, "linf"), Powers(), dither.Signs()):
        codes, scale = carrier.write(nothing, rng())
        assert carrier.validate(codes, scale, 0, F32, 4.0) is None
        assert len(carrier.read(codes, scale, 0, F32, 4.0)) == 0


def test_natural_compression_of_nothing_but_zeros_has_the_smallest_scale() -> None:
    for zeros in (np.zeros(3, np.float32), -np.zeros(3, np.float32), np.zeros(0, np.float32)):
        assert Powers().write(zeros, rng())[1] == 2.0**-222  # the smallest normal number, and 96 powers below it
