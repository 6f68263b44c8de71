"""Packets of identity and rand-k: what they hold, how they are read, forged and refused."""

from typing import Any

import numpy as np
import pytest

from strategies.algorithm import Packet
from strategies.compressors import Identity, RandK, _below, _words, indices

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
V = np.arange(1.0, 6.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_identity_sends_everything() -> None:
    packet = Identity().compress(V, rng())
    assert (packet.kind, packet.dim, packet.seed) == ("identity", 5, None)
    np.testing.assert_array_equal(Identity().decompress(packet), V)
    assert Identity().flaw(packet, 5, F64) is None


def test_identity_has_no_variance() -> None:
    q = Identity()
    assert (q.n_values(5), q.omega(5), q.norm_bound(5)) == (5, 0.0, 1.0)


def test_identity_forges_the_target() -> None:
    np.testing.assert_array_equal(Identity().forge(V, rng()).values, V)


def test_rand_k_constants() -> None:
    q = RandK(k=12)
    assert (q.n_values(120), q.omega(120), q.norm_bound(120)) == (12, 9.0, 10.0)


@pytest.mark.parametrize(("ratio", "dim", "k"), [(0.1, 123, 12), (0.1, 3, 1), (1.0, 7, 7), (0.5, 10, 5), (0.999, 4, 4)])
def test_ratio_is_resolved_by_rounding_to_at_least_1(ratio: float, dim: int, k: int) -> None:
    assert RandK(ratio=ratio).n_values(dim) == k


def test_rand_k_sends_plain_values_and_the_receiver_scales() -> None:
    q = RandK(k=2)
    packet = q.compress(V, rng())
    assert packet.seed is not None
    kept = indices(packet.seed, 5, 2)
    np.testing.assert_array_equal(packet.values, V[kept])
    expected = np.zeros(5)
    expected[kept] = V[kept] * 2.5
    np.testing.assert_array_equal(q.decompress(packet), expected)


def test_rand_k_with_k_equal_d_is_the_identity() -> None:
    q = RandK(k=5)
    np.testing.assert_array_equal(q.decompress(q.compress(V, rng())), V)


def test_every_packet_has_a_fresh_mask() -> None:
    generator, q = rng(), RandK(k=2)
    assert len({q.compress(V, generator).seed for _ in range(20)}) == 20


def test_the_word_stream_is_the_published_one() -> None:
    # First outputs of SplitMix64 for the seed 1234567, as published with its reference code.
    words = _words(1234567, 0, 3).tolist()
    assert words == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert _words(1234567, 1, 2).tolist() == words[1:]


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


def test_words_of_the_incomplete_last_run_are_thrown_away() -> None:
    # 2^64 = 1 mod 3 and mod 5: one word is left over. 2^64 = 0 mod 4: none is.
    top = np.array([2**64 - 2, 2**64 - 1], np.uint64)
    assert _below(3, top).tolist() == [2]
    assert _below(5, top).tolist() == [4]
    assert _below(4, top).tolist() == [2, 3]


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
        (packet([1.0, np.nan]), "not finite: NaN or infinite values"),
        (packet([-np.inf, 1.0]), "not finite: NaN or infinite values"),
        (packet([2e38, 1.0]), "not finite: values overflow float32 when multiplied by d/k = 2.5"),
    ],
)
def test_rand_k_screens(bad: Packet, reason: str) -> None:
    assert RandK(k=2).flaw(packet(), 5, F32) is None
    assert RandK(k=2).flaw(bad, 5, F32) == reason


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
    assert Identity().flaw(Packet(**good), 5, F32) is None
    assert Identity().flaw(Packet(**(good | change)), 5, F32) == reason


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
def test_settings_out_of_bounds_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandK(**settings)


def test_k_above_d_is_refused_with_both_numbers() -> None:
    q = RandK(k=6)
    for use in (lambda: q.compress(V, rng()), lambda: q.omega(5), lambda: q.flaw(packet(), 5, F32)):
        with pytest.raises(ValueError, match="k = 6: must be at most d = 5"):
            use()


def test_an_unscreened_packet_without_seed_is_not_read() -> None:
    with pytest.raises(ValueError, match="was not screened"):
        RandK(k=2).decompress(packet(seed=None))


def test_a_forged_packet_passes_the_screening_and_finds_a_good_mask() -> None:
    q, target = RandK(k=10), np.zeros(100, np.float32)
    target[40] = 5.0  # a mask holds it with probability 0.1; one of 16 does with 0.81
    forged = [q.forge(target, rng(seed)) for seed in range(40)]
    assert all(q.flaw(one, 100, F32) is None for one in forged)
    hits = [q.decompress(one)[40] for one in forged]
    assert set(hits) <= {0.0, 50.0}  # d/k times the target: scaled once
    assert sum(hit > 0 for hit in hits) > 20


def test_colluders_with_equal_generators_forge_equal_packets() -> None:
    q = RandK(k=2)
    assert q.forge(V, rng(3)).seed == q.forge(V, rng(3)).seed


@pytest.mark.parametrize("fill", [np.nan, np.inf, 0.0, 1e38])
def test_any_target_can_be_forged(fill: float) -> None:
    forged = RandK(k=2).forge(np.full(5, fill, np.float32), rng())
    np.testing.assert_array_equal(forged.values, np.full(2, fill, np.float32))
