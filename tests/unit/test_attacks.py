"""Every attack's formula by hand, what each may know, and what becomes of it as a packet."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from attacks.attack import Attack, Repack
from attacks.kinds import (
    ALIE,
    FOE,
    IPM,
    Big,
    BitFlip,
    Gaussian,
    LabelFlip,
    NaN,
    ShiftBack,
    Silence,
    Zero,
    default_z,
)
from attacks.view import View
from strategies.aggregators import CoordinateMedian, Mean
from strategies.algorithm import Packet, Rows, Vector
from strategies.compressors import Identity, RandK

OWN = np.array([1.0, -2.0])
HONEST = np.array([[1.0, 10.0], [3.0, 10.0], [5.0, 40.0]])  # mean (3, 20), standard deviation (2, sqrt(300))
ALL: list[Attack] = [
    BitFlip(),
    LabelFlip(),
    ALIE(),
    IPM(),
    FOE(),
    ShiftBack(),
    Big(),
    NaN(),
    Silence(),
    Zero(),
    Gaussian(),
]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def mean(rows: Rows) -> Vector:
    return Mean()(rows, 0, rng())


def view(**other: Any) -> View:
    known = View(
        worker=4,
        own=OWN,
        flipped=lambda: np.array([7.0, 8.0]),
        peers=lambda: HONEST,
        n=20,
        f=5,
        sampled=4,
        sampled_byzantine=1,
        x=np.array([3.0, 5.0]),
        x0=np.array([1.0, 1.0]),
        gamma=0.5,
        aggregate=mean,
    )
    return replace(known, **other)


def no_packet(flipped: bool) -> Packet:
    raise AssertionError("this attack does not look at its honest packet")


def test_bit_flip_negates_its_own_message() -> None:
    np.testing.assert_array_equal(BitFlip()(view(), rng()), [-1.0, 2.0])


def test_label_flip_sends_the_message_on_flipped_labels() -> None:
    np.testing.assert_array_equal(LabelFlip()(view(), rng()), [7.0, 8.0])


def test_nan_zero_and_silence() -> None:
    assert np.isnan(NaN()(view(), rng())).all()
    np.testing.assert_array_equal(Zero()(view(), rng()), [0.0, 0.0])
    assert Silence().packet(view(), Identity(), rng(), no_packet) is None


def test_big() -> None:
    np.testing.assert_array_equal(Big()(view(), rng()), [-1000.0, -1000.0])
    np.testing.assert_array_equal(Big(value=3.0)(view(), rng()), [3.0, 3.0])


def test_gaussian_is_noise_of_its_size_and_the_same_for_equal_generators() -> None:
    seen = view(own=np.zeros(10_000))
    noise = Gaussian(sigma=4.0)(seen, rng())
    assert noise.std() == pytest.approx(4.0, rel=0.05)
    np.testing.assert_array_equal(noise, Gaussian(sigma=4.0)(seen, rng()))


def test_alie_shifts_the_mean_by_z_standard_deviations() -> None:
    np.testing.assert_allclose(ALIE(z=1.5)(view(), rng()), [3.0 - 1.5 * 2.0, 20.0 - 1.5 * np.sqrt(300.0)], atol=1e-14)


def test_alie_takes_the_default_z_of_n_and_f() -> None:
    np.testing.assert_allclose(ALIE()(view(), rng())[0], 3.0 - 2.0 * 0.2533471)


@pytest.mark.parametrize(("n", "f", "z"), [(20, 5, 0.2533471), (5, 1, 0.0), (50, 24, 1.4260769), (10, 3, 0.1800124)])
def test_default_z(n: int, f: int, z: float) -> None:
    # (20, 5): s = 11 - 5 = 6, Phi^-1(9/15). (5, 1): s = 2, Phi^-1(2/4). (50, 24): s = 2, Phi^-1(24/26).
    # (10, 3): s = 3, Phi^-1(4/7).
    assert default_z(n, f) == pytest.approx(z, abs=1e-7)


@pytest.mark.parametrize(("n", "f"), [(4, 3), (20, 11), (2, 1), (1, 0)])
def test_default_z_is_refused_where_it_has_no_value(n: int, f: int) -> None:
    with pytest.raises(ValueError, match=f"f = {f} of n = {n} clients: give z"):
        default_z(n, f)


def test_alie_on_one_row_has_no_spread() -> None:
    np.testing.assert_array_equal(ALIE(z=1.0)(view(peers=lambda: HONEST[:1]), rng()), [1.0, 10.0])


def test_ipm_sends_a_little_against_the_mean() -> None:
    np.testing.assert_allclose(IPM()(view(), rng()), [-0.3, -2.0])
    np.testing.assert_allclose(IPM(eps=2.0)(view(), rng()), [-6.0, -40.0])


def test_foe_with_a_fixed_eps() -> None:
    np.testing.assert_allclose(FOE(eps=0.5)(view(), rng()), [-1.5, -10.0])


def test_foe_finds_the_largest_eps_against_the_mean() -> None:
    np.testing.assert_allclose(FOE()(view(), rng()), -5.0 * HONEST.mean(axis=0))


def test_foe_finds_the_eps_in_between_that_hurts_most() -> None:
    def wary(rows: Rows) -> Vector:
        """Average, but leave out what is longer than 60; the mean of HONEST is 20.2 long."""
        return np.asarray(rows[np.linalg.norm(rows, axis=1) < 60.0].mean(axis=0))

    np.testing.assert_allclose(FOE()(view(aggregate=wary), rng()), -2.5 * HONEST.mean(axis=0))


def test_foe_takes_the_least_of_equally_harmful_eps() -> None:
    np.testing.assert_allclose(FOE()(view(aggregate=lambda rows: rows[0]), rng()), -0.1 * HONEST.mean(axis=0))


def test_foe_shows_the_server_as_many_rows_as_were_sampled() -> None:
    seen: list[int] = []

    def count(rows: Rows) -> Vector:
        seen.append(len(rows))
        return mean(rows)

    FOE()(view(aggregate=count, sampled=9, sampled_byzantine=2), rng())
    assert seen == [7, *[9] * len(FOE.GRID)]


def test_foe_in_a_cohort_without_honest_clients_starts_from_its_own_message() -> None:
    alone = view(peers=lambda: np.empty((0, 2)), sampled=2, sampled_byzantine=2)
    np.testing.assert_allclose(FOE()(alone, rng()), -5.0 * OWN)


@pytest.mark.parametrize(("s", "expected"), [(None, [2.0, 4.0]), (2.0, [8.0, 16.0]), (0.5, [2.0, 4.0])])
def test_shift_back_with_a_strict_majority_goes_back_to_the_start(s: float | None, expected: list[float]) -> None:
    # x - x0 = (2, 4), gamma = 0.5; s = None is s = gamma.
    majority = view(sampled=4, sampled_byzantine=3)
    np.testing.assert_array_equal(ShiftBack(s=s)(majority, rng()), expected)


def test_a_shift_back_step_of_length_gamma_lands_at_the_share_1_minus_s() -> None:
    majority = view(sampled=4, sampled_byzantine=3)
    landed = majority.x - majority.gamma * ShiftBack(s=2.0)(majority, rng())
    np.testing.assert_allclose(landed, majority.x0 - (majority.x - majority.x0))


@pytest.mark.parametrize("byzantine", [1, 2])
def test_shift_back_without_a_strict_majority_hides_in_the_mean(byzantine: int) -> None:
    np.testing.assert_array_equal(ShiftBack()(view(sampled=4, sampled_byzantine=byzantine), rng()), [3.0, 20.0])


@pytest.mark.parametrize("attack", [ALIE(z=1.0), IPM(), FOE(), ShiftBack()], ids=lambda attack: attack.kind)
def test_an_empty_view_of_honest_clients_falls_back_on_the_own_message(attack: Attack) -> None:
    empty = view(peers=lambda: np.empty((0, 2)), sampled=4, sampled_byzantine=2)
    target = attack(empty, rng())
    assert target is not None
    scale = target / OWN
    assert scale[0] == pytest.approx(scale[1])


@pytest.mark.parametrize("attack", ALL, ids=lambda attack: attack.kind)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0.0, 1.0, 3e38])
def test_every_target_has_form_and_type_of_the_own_message_and_is_finite(
    attack: Attack, dtype: type, size: float
) -> None:
    own: Vector = np.full(3, size, dtype)
    honest: Rows = np.array([[size] * 3, [-size] * 3, [size, 0, 0]], dtype)
    seen = view(own=own, flipped=lambda: own, peers=lambda: honest, x=own, x0=-own, sampled_byzantine=3)
    target = attack(seen, rng())
    if attack.kind == "silence":
        assert target is None
    else:
        assert target is not None
        assert (target.shape, target.dtype) == ((3,), own.dtype)
        assert np.isfinite(target).all() == (attack.kind != "nan")


@pytest.mark.parametrize("attack", ALL, ids=lambda attack: attack.kind)
def test_no_attack_modifies_what_it_is_shown(attack: Attack) -> None:
    own, honest = OWN.copy(), HONEST.copy()
    own.flags.writeable = honest.flags.writeable = False
    packet = Packet("identity", 2, own)
    attack(view(own=own, peers=lambda: honest), rng())
    attack.packet(view(own=own, peers=lambda: honest), Identity(), rng(), lambda flipped: packet)
    np.testing.assert_array_equal(own, OWN)


def test_bit_flip_repacks_so_that_the_server_reads_the_exact_negative() -> None:
    q, v = RandK(k=3), np.arange(1.0, 11.0)
    honest = q.compress(v, rng())
    sent = BitFlip().packet(view(own=q.decompress(honest)), q, rng(), lambda flipped: honest)
    assert sent.seed == honest.seed
    np.testing.assert_array_equal(q.decompress(sent), -q.decompress(honest))


def test_label_flip_asks_for_the_packet_on_flipped_labels_and_sends_it() -> None:
    packets = {labels: Packet("identity", 2, np.full(2, float(labels))) for labels in (False, True)}
    assert LabelFlip().packet(view(), Identity(), rng(), packets.__getitem__) is packets[True]
    sent = BitFlip().packet(view(), Identity(), rng(), packets.__getitem__)
    np.testing.assert_array_equal(sent.values, [0.0, 0.0])


def test_nan_keeps_the_form_of_the_packet_and_is_screened() -> None:
    q = RandK(k=3)
    honest = q.compress(np.arange(1.0, 11.0), rng())
    sent = NaN().packet(view(), q, rng(), lambda flipped: honest)
    assert q.flaw(sent, 10, np.dtype(np.float64)) == "not finite: NaN or infinite values"


def test_an_aiming_attack_forges_a_packet_that_the_server_accepts() -> None:
    q = RandK(k=3)
    sent = Big().packet(view(own=np.zeros(12)), q, rng(), no_packet)
    assert sent is not None
    assert q.flaw(sent, 12, np.dtype(np.float64)) is None
    assert sorted(set(q.decompress(sent))) == [-4000.0, 0.0]  # d/k times -1000, once


def test_a_coalition_with_equal_generators_hits_the_same_coordinates() -> None:
    q = RandK(k=3)
    packets = [Big().packet(view(own=np.zeros(12), worker=i), q, rng(), no_packet) for i in range(3)]
    assert len({packet.seed for packet in packets if packet is not None}) == 1


@pytest.mark.parametrize("kind", [ALIE, IPM, FOE])
def test_attacks_on_the_honest_mean_need_fellows(kind: type[Attack]) -> None:
    with pytest.raises(ValueError, match=r'view = "own": (alie|ipm|foe) needs at least "coalition"'):
        kind(view="own")  # type: ignore[call-arg]  # the kinds of the base class have a default


def test_who_must_be_told_the_cohort() -> None:
    told = {attack.kind for attack in ALL if attack.needs_cohort}
    assert told == {"shb"}
    assert ShiftBack(view="own").needs_cohort
    assert ALIE(view="omniscient").needs_cohort


def test_which_attacks_repack() -> None:
    assert {attack.kind for attack in ALL if isinstance(attack, Repack)} == {"bf", "lf", "nan"}


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (ALIE, {"z": float("nan")}, "z = nan: must be finite"),
        (IPM, {"eps": 0.0}, "eps = 0.0: must be above 0"),
        (FOE, {"eps": -1.0}, "eps = -1.0: must be above 0"),
        (ShiftBack, {"s": float("inf")}, "s = inf: must be above 0 and finite"),
        (Big, {"value": float("inf")}, "value = inf: must be finite"),
        (Gaussian, {"sigma": 0.0}, "sigma = 0.0: must be above 0"),
    ],
)
def test_settings_out_of_bounds_are_refused(kind: type[Attack], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_alie_harms_the_median_from_within_the_spread_as_much_as_an_outlier_does() -> None:
    honest = np.random.default_rng(1).normal(1.0, 1.0, (15, 200))
    seen = view(own=honest[0], peers=lambda: honest)
    rule = CoordinateMedian()
    moved = {}
    for attack in (ALIE(z=1.0), Big()):
        target = attack(seen, rng())
        assert target is not None
        moved[attack.kind] = rule(np.concatenate([honest, np.tile(target, (5, 1))]), 5, rng()).mean()
    assert moved["big"] == pytest.approx(moved["alie"], abs=0.2)
    assert moved["alie"] < rule(honest, 5, rng()).mean() - 0.2
