"""Packets of the compressors that choose coordinates: what they hold, how they are read, forged and refused."""

from typing import Any

import numpy as np
import pytest

from strategies.compressors import Identity, Masked, PermK, RandK, TopK, choices, coordinates
from strategies.compressors.coordinates import _below, indices, part, part_bounds, words
from strategies.method import Compressor, Packet, PacketLayout
from tests.forms import FORMS, in_round

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
V = np.arange(1.0, 6.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_identity_sends_everything() -> None:
    packet = Identity().compress(V, rng())
    assert (packet.kind, packet.dim, packet.seed, packet.scale, packet.marks) == ("identity", 5, None, None, None)
    np.testing.assert_array_equal(Identity().decompress(packet, F64), V)
    assert Identity().validate(packet, 5, F64) is None


def test_identity_has_no_variance() -> None:
    q = Identity()
    assert (q.layout(5, F32), q.omega(5), q.norm_bound(5), q.contraction(5)) == (PacketLayout(5, F32), 0.0, 1.0, 1.0)


def test_identity_forges_the_target() -> None:
    np.testing.assert_array_equal(Identity().forge(V, rng()).values, V)


def test_rand_k_constants() -> None:
    q = RandK(k=12)
    assert (q.layout(120, F64), q.omega(120), q.norm_bound(120)) == (PacketLayout(12, F64, seed=True), 9.0, 10.0)
    assert q.contraction(120) == -8.0  # no contraction: the error may be nine times the vector


@pytest.mark.parametrize(("ratio", "dim", "k"), [(0.1, 123, 12), (0.1, 3, 1), (1.0, 7, 7), (0.5, 10, 5), (0.999, 4, 4)])
def test_ratio_is_resolved_by_rounding_to_at_least_1(ratio: float, dim: int, k: int) -> None:
    for q in (RandK(ratio=ratio), Masked(ratio=ratio), TopK(ratio=ratio)):
        assert q.layout(dim, F32).count == k


def test_rand_k_sends_plain_values_and_the_receiver_scales() -> None:
    q = RandK(k=2)
    packet = q.compress(V, rng())
    assert packet.seed is not None
    kept = indices(packet.seed, 5, 2)
    np.testing.assert_array_equal(packet.values, V[kept])
    expected = np.zeros(5)
    expected[kept] = V[kept] * 2.5
    np.testing.assert_array_equal(q.decompress(packet, F64), expected)


def test_rand_k_with_k_equal_d_is_the_identity() -> None:
    q = RandK(k=5)
    np.testing.assert_array_equal(q.decompress(q.compress(V, rng()), F64), V)


def test_every_packet_has_a_fresh_mask() -> None:
    generator, q = rng(), RandK(k=2)
    assert len({q.compress(V, generator).seed for _ in range(20)}) == 20


# --- what is drawn from a seed: part of the protocol ---


def test_the_word_stream_is_the_published_one() -> None:
    # First outputs of SplitMix64 for the seed 1234567, as published with its reference code.
    first = words(1234567, 0, 3).tolist()
    assert first == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert words(1234567, 1, 2).tolist() == first[1:]


@pytest.mark.parametrize(
    ("seed", "d", "k", "expected"),
    [
        (0, 1000, 5, [444, 535, 679, 700, 747]),
        (1, 1000, 5, [235, 465, 519, 590, 761]),
        (2**64 - 1, 10, 8, [0, 1, 2, 3, 4, 5, 7, 8]),
    ],
)
def test_masks_never_change(seed: int, d: int, k: int, expected: list[int]) -> None:
    """The masks are part of the protocol: an old client and a new server must agree on them."""
    assert indices(seed, d, k).tolist() == expected
    assert choices.places(coordinates.shared_mask(seed, d, k), k).tolist() == expected


def test_words_of_the_incomplete_last_run_are_thrown_away() -> None:
    # 2^64 = 1 mod 3 and mod 5: one word is left over. 2^64 = 0 mod 4: none is.
    top = np.array([2**64 - 2, 2**64 - 1], np.uint64)
    assert _below(3, top).tolist() == [2]
    assert _below(5, top).tolist() == [4]
    assert _below(4, top).tolist() == [2, 3]


@pytest.mark.parametrize(("d", "n"), [(10, 3), (12, 4), (3, 5), (1, 1), (1, 4), (1000, 7)])
def test_parts_are_a_partition_of_sizes_that_differ_by_one_at_most(d: int, n: int) -> None:
    for seed in (0, 1, 2**64 - 1):
        parts = [part(seed, d, n, i).tolist() for i in range(n)]
        assert sorted(j for one in parts for j in one) == list(range(d))
        assert {len(one) for one in parts} <= {d // n, -(-d // n)}
        assert [len(one) for one in parts] == [
            stop - start for start, stop in (part_bounds(seed, d, n, i) for i in range(n))
        ]


def test_parts_never_change() -> None:
    assert [part(7, 10, 3, i).tolist() for i in range(3)] == [[3, 7, 9], [4, 8, 2], [5, 1, 6, 0]]


# --- a mask of the round ---


def test_masked_workers_share_a_mask_and_send_values_alone() -> None:
    q = Masked(k=2)
    a, b = q.of_round(9, 0), q.of_round(9, 3)
    packet = a.compress(V, rng())
    assert (packet.seed, packet.scale, packet.marks) == (None, None, None)
    kept = indices(9, 5, 2)
    np.testing.assert_array_equal(packet.values, V[kept])
    out = b.decompress(packet, F64)
    np.testing.assert_array_equal(out[kept], 2.5 * V[kept])
    assert np.count_nonzero(out) == 2
    assert a.layout(5, F64).nbytes == 16


def test_perm_k_parts_add_up_to_n_times_the_vector() -> None:
    for d, n in ((5, 2), (5, 5), (5, 8), (6, 3)):
        v = np.arange(1.0, d + 1)
        workers = [PermK(parts=n).of_round(3, i) for i in range(n)]
        outs = [q.decompress(q.compress(v, rng()), F64) for q in workers]
        np.testing.assert_array_equal(np.mean(outs, axis=0), v)
        assert sum(q.layout(d, F64).count for q in workers) == d
        for out in outs:
            assert set(out.tolist()) <= {0.0, *(n * v).tolist()}


def test_perm_k_before_the_round_is_known_tells_the_largest_part() -> None:
    q = PermK(parts=3)
    assert (q.layout(10, F32).count, q.omega(10), q.norm_bound(10)) == (4, 2.0, 3.0)


def test_the_round_makes_no_difference_to_what_is_not_shared() -> None:
    for q in FORMS:
        if not q.shared:
            assert q.of_round(None, 0) is q


def test_shared_compressors_need_a_seed() -> None:
    for q in (Masked(k=2), PermK(parts=2)):
        with pytest.raises(ValueError, match=f"{q.kind}: all workers of a round draw from one seed"):
            q.of_round(None, 0)
    with pytest.raises(ValueError, match="all workers of a round"):
        Masked(k=2).compress(V, rng())
    with pytest.raises(ValueError, match=r"perm-k has parts for 0 \.\. 1"):
        PermK(parts=2).of_round(1, 2)
    with pytest.raises(ValueError, match="parts is not given"):
        PermK().layout(5, F32)


# --- top-k ---


def test_top_k_keeps_the_largest_and_of_equals_the_first() -> None:
    v = np.array([1.0, -3.0, 2.0, 3.0, -2.0, 2.0])
    q = TopK(k=3)
    np.testing.assert_array_equal(q.decompress(q.compress(v, rng()), F64), [0, -3.0, 2.0, 3.0, 0, 0])
    assert (q.layout(6, F64), q.omega(6), q.contraction(6), q.norm_bound(6)) == (
        PacketLayout(3, F64, marks=1),
        0.5,
        0.5,
        1.0,
    )


def test_top_k_names_coordinates_in_the_shorter_form() -> None:
    v = np.zeros(64, np.float32)
    v[[3, 60]] = 1.0, -2.0
    listed = TopK(k=2).compress(v, rng()).marks  # 8 bytes either way: the list
    assert listed is not None
    assert listed.tolist() == [3, 0, 0, 0, 60, 0, 0, 0]
    bits = TopK(k=3).compress(v, rng()).marks  # 12 bytes against 8
    assert bits is not None
    assert bits.tolist() == [0b1001, 0, 0, 0, 0, 0, 0, 0b10000]
    assert [TopK(k=k).layout(64, F32).nbytes for k in (2, 3)] == [8 + 8, 12 + 8]


def top(marks: list[int], d: int = 64, k: int = 2) -> str | None:
    packet = Packet("top-k", d, np.zeros(k, np.float32), marks=np.array(marks, np.uint8))
    return TopK(k=k).validate(packet, d, F32)


@pytest.mark.parametrize(
    ("marks", "d", "k", "reason"),
    [
        ([3, 0, 0, 0, 63, 0, 0, 0], 64, 2, None),
        ([3, 0, 0, 0, 64, 0, 0, 0], 64, 2, "bad index: 64, expected one below 64"),
        ([3, 0, 0, 0, 0, 0, 0, 255], 64, 2, "bad index: 4278190080, expected one below 64"),
        ([3, 0, 0, 0, 3, 0, 0, 0], 64, 2, "bad index: coordinates that do not ascend"),
        ([4, 0, 0, 0, 3, 0, 0, 0], 64, 2, "bad index: coordinates that do not ascend"),
        ([3, 0, 0, 0], 64, 2, "wrong shape: 4 bytes of marks, expected 8"),
        ([], 64, 2, "wrong shape: 0 bytes of marks, expected 8"),
        ([0b11001], 5, 3, None),
        ([0b11011], 5, 3, "bad index: 4 coordinates, expected 3"),
        ([0b10001], 5, 3, "bad index: 2 coordinates, expected 3"),
        ([0b101001], 5, 3, "bad index: bits behind the last coordinate"),
    ],
)
def test_top_k_screens_its_marks(marks: list[int], d: int, k: int, reason: str | None) -> None:
    assert top(marks, d, k) == reason


def test_marks_of_another_form() -> None:
    good = np.zeros(2, np.float32)
    assert TopK(k=2).validate(Packet("top-k", 64, good), 64, F32) == "wrong shape: 0 bytes of marks, expected 8"
    wide: Any = np.zeros(2, np.uint32)
    flaw = TopK(k=2).validate(Packet("top-k", 64, good, marks=wide), 64, F32)
    assert flaw == "wrong dtype: marks of uint32, expected uint8"
    extra = Packet("identity", 2, good, marks=np.zeros(1, np.uint8))
    assert Identity().validate(extra, 2, F32) == "wrong shape: 1 bytes of marks, expected 0"


# --- screening ---


def packet(values: Any = (1.0, 2.0), dtype: Any = np.float32, **other: Any) -> Packet:
    fields: dict[str, Any] = {"kind": "rand-k", "dim": 5, "values": np.array(values, dtype), "seed": 7}
    return Packet(**(fields | other))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (packet(kind="identity"), "wrong kind: 'identity', expected 'rand-k'"),
        (packet(dim=6), "wrong dimension: 6, expected 5"),
        (packet([1.0, 2.0, 3.0]), "wrong shape: 3 values, expected 2"),
        (packet([]), "wrong shape: 0 values, expected 2"),
        (packet([[1.0], [2.0]]), "wrong shape: (2, 1), expected (2,)"),
        (packet(dtype=np.float64), "wrong dtype: float64, expected float32"),
        (packet(seed=None), "bad seed: None, expected an integer from 0 to 2^64 - 1"),
        (packet(seed=-1), "bad seed: -1, expected an integer from 0 to 2^64 - 1"),
        (packet(seed=2**64), f"bad seed: {2**64}, expected an integer from 0 to 2^64 - 1"),
        (packet(scale=1.0), "bad scale: 1.0, expected none"),
        (packet([1.0, np.nan]), "not finite: NaN or infinite values"),
        (packet([-np.inf, 1.0]), "not finite: NaN or infinite values"),
        (packet([2e38, 1.0]), "not finite: values overflow float32 when multiplied by 2.5"),
        (packet([1.0, -2e38]), "not finite: values overflow float32 when multiplied by 2.5"),
    ],
)
def test_rand_k_screens(bad: Packet, reason: str) -> None:
    assert RandK(k=2).validate(packet(), 5, F32) is None
    assert RandK(k=2).validate(bad, 5, F32) == reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 3}, "bad seed: 3, expected none"),
        ({"values": np.zeros(4, np.float32)}, "wrong shape: 4 values, expected 5"),
        ({"kind": "rand-k", "seed": 3}, "wrong kind: 'rand-k', expected 'identity'"),
        ({"values": np.full(5, np.nan, np.float32)}, "not finite: NaN or infinite values"),
    ],
)
def test_identity_screens(change: dict[str, Any], reason: str) -> None:
    good: dict[str, Any] = {"kind": "identity", "dim": 5, "values": np.zeros(5, np.float32)}
    assert Identity().validate(Packet(**good), 5, F32) is None
    assert Identity().validate(Packet(**(good | change)), 5, F32) == reason


@pytest.mark.parametrize("kind", [RandK, Masked, TopK])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "k = None, ratio = None: exactly one"),
        ({"k": 3, "ratio": 0.1}, "k = 3, ratio = 0.1: exactly one"),
        ({"k": 0}, "k = 0: must be at least 1"),
        ({"ratio": 0.0}, "ratio = 0.0: must be above 0 and at most 1"),
        ({"ratio": 1.5}, "ratio = 1.5: must be above 0 and at most 1"),
        ({"ratio": float("nan")}, "ratio = nan: must be"),
    ],
)
def test_settings_out_of_bounds_are_refused(kind: type, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_other_settings_out_of_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="parts = 0: must be at least 1"):
        PermK(parts=0)
    with pytest.raises(ValueError, match='levels = 3, values = "float16": at most one'):
        RandK(k=1, levels=3, values="float16")
    with pytest.raises(ValueError, match="levels = 0: must be at least 1 and at most 32767"):
        PermK(levels=0)


def test_k_above_d_is_refused_with_both_numbers() -> None:
    q = RandK(k=6)
    for use in (lambda: q.compress(V, rng()), lambda: q.omega(5), lambda: q.validate(packet(), 5, F32)):
        with pytest.raises(ValueError, match="k = 6: must be at most d = 5"):
            use()


@pytest.mark.parametrize(
    "bad", [packet(seed=None), packet([1.0]), packet([1.0, 2.0, 3.0]), packet(kind="top-k"), packet(dtype=np.float64)]
)
def test_a_packet_that_was_not_screened_is_not_read(bad: Packet) -> None:
    with pytest.raises(ValueError, match="was not screened"):
        RandK(k=2).decompress(bad, F32)


# --- forging ---


def test_a_forged_packet_passes_the_screening_and_finds_a_good_mask() -> None:
    q, target = RandK(k=10), np.zeros(100, np.float32)
    target[40] = 5.0  # a mask holds it with probability 0.1; one of 16 does with 0.81
    forged = [q.forge(target, rng(seed)) for seed in range(40)]
    assert all(q.validate(one, 100, F32) is None for one in forged)
    hits = [q.decompress(one, F32)[40] for one in forged]
    assert set(hits) <= {0.0, 50.0}  # d/k times the target: scaled once
    assert sum(hit > 0 for hit in hits) > 20


def test_colluders_with_equal_generators_forge_equal_packets() -> None:
    q = RandK(k=2)
    assert q.forge(V, rng(3)).seed == q.forge(V, rng(3)).seed


@pytest.mark.parametrize("fill", [np.nan, np.inf, 0.0, 1e38])
def test_any_target_can_be_forged(fill: float) -> None:
    forged = RandK(k=2).forge(np.full(5, fill, np.float32), rng())
    np.testing.assert_array_equal(forged.values, np.full(2, fill, np.float32))


@pytest.mark.parametrize("form", FORMS, ids=repr)
@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf])
def test_what_is_forged_of_no_number_is_refused(form: Compressor, fill: float) -> None:
    q = in_round(form)
    target = np.full(8, fill, np.float32)
    for made in (q.forge(target, rng()), q.compress(target, rng())):
        flaw = q.validate(made, 8, F32)
        assert flaw is not None
        assert flaw.startswith("not finite")


@pytest.mark.parametrize("form", [q for q in FORMS if not isinstance(q, RandK | Masked | PermK)], ids=repr)
def test_a_forger_comes_as_close_as_rounding_allows(form: Compressor) -> None:
    target, d = rng(5).normal(size=200), 200
    made = form.forge(target, rng(6))
    assert form.validate(made, d, F64) is None
    honest = [np.linalg.norm(form.decompress(form.compress(target, rng(s)), F64) - target) for s in range(20)]
    assert np.linalg.norm(form.decompress(made, F64) - target) <= min(honest) * (1 + 1e-12)


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_the_opposite_packet_reads_as_minus_it(form: Compressor) -> None:
    q = in_round(form)
    for d in (1, 7, 8, 50):
        v = rng(d).normal(size=d).astype(np.float32)
        one = q.compress(v, rng())
        other = q.opposite(one)
        assert q.validate(other, d, F32) is None
        np.testing.assert_array_equal(q.decompress(other, F32), -q.decompress(one, F32))
        assert q.opposite(other).values.tobytes() == one.values.tobytes()
