"""Every attack's formula by hand, what each may know, and what becomes of it as a packet."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from attacks.adaptive import ROP, Fang, Mimic, MinMax, MinSum, OptimalALIE, OptimalIPM
from attacks.attack import Attack, Individual, Repack
from attacks.classical import (
    ALIE,
    FOE,
    IPM,
    Big,
    BitFlip,
    Gaussian,
    Infinity,
    LabelFlip,
    NaN,
    ShiftBack,
    Silence,
    Zero,
    default_z,
)
from attacks.faults import Fault, WireFault
from attacks.moments import calm, mean_and_deviation
from attacks.search import COARSE, REFINEMENTS, most_harmful
from attacks.view import View
from strategies.aggregators import CoordinateMedian, Krum, Mean, TrimmedMean
from strategies.compressors import Identity, RandK
from strategies.method import Rows, Vector

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
    Infinity(),
    OptimalALIE(),
    OptimalIPM(),
    MinMax(),
    MinMax(direction="std"),
    MinMax(direction="sign"),
    MinSum(),
    MinSum(direction="std"),
    MinSum(direction="sign"),
    Fang(),
    Fang(view="omniscient"),
    Fang(against="krum"),
    Mimic(),
    ROP(),
    WireFault(),
    ALIE(jitter=1.0),
    IPM(jitter=1.0),
    FOE(jitter=1.0),
    MinMax(jitter=1.0),
    MinSum(jitter=1.0),
    ShiftBack(jitter=1.0),
]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def mean(rows: Rows) -> Vector:
    return Mean().weigh(rows, 0, rng())[0]


def view(**other: Any) -> View:
    known = View(
        worker=4,
        dim=2,
        dtype=np.dtype(np.float64),
        honestly=lambda: OWN,
        flipped=lambda: np.array([7.0, 8.0]),
        ids=lambda: range(3),
        peers=lambda: HONEST,
        message=lambda i: HONEST[i] if i < 3 else None,
        n=20,
        f=5,
        sampled=4,
        sampled_byzantine=1,
        seats=[4, 6],
        x=np.array([3.0, 5.0]),
        x0=np.array([1.0, 1.0]),
        g=None,
        gamma=0.5,
        aggregate=mean,
        rule="",
        draw=np.random.default_rng,
    )
    if "own" in other:
        own = other.pop("own")
        other |= {"honestly": lambda: own, "dim": len(own), "dtype": own.dtype}
    return replace(known, **other)


def target(attack: Attack, seen: View | None = None, **other: Any) -> Vector:
    """What the attack aims at; it must not be silent."""
    aimed = attack(seen or view(**other), rng())
    assert aimed is not None
    return aimed


def test_bit_flip_negates_its_own_message() -> None:
    np.testing.assert_array_equal(target(BitFlip()), [-1.0, 2.0])


def test_label_flip_sends_the_message_on_flipped_labels() -> None:
    np.testing.assert_array_equal(target(LabelFlip()), [7.0, 8.0])


def test_nan_infinity_zero_and_silence() -> None:
    assert np.isnan(target(NaN())).all()
    np.testing.assert_array_equal(target(Infinity()), [np.inf, np.inf])
    np.testing.assert_array_equal(target(Zero()), [0.0, 0.0])
    assert Silence()(view(), rng()) is None


def test_big() -> None:
    np.testing.assert_array_equal(target(Big()), [-1000.0, -1000.0])
    np.testing.assert_array_equal(target(Big(value=3.0)), [3.0, 3.0])


def test_gaussian_is_noise_of_its_size_and_the_same_for_equal_generators() -> None:
    seen = view(own=np.zeros(10_000))
    noise = target(Gaussian(sigma=4.0), seen)
    assert noise.std() == pytest.approx(4.0, rel=0.05)
    np.testing.assert_array_equal(noise, target(Gaussian(sigma=4.0), seen))


def test_alie_shifts_the_mean_by_z_standard_deviations() -> None:
    np.testing.assert_allclose(target(ALIE(z=1.5)), [3.0 - 1.5 * 2.0, 20.0 - 1.5 * np.sqrt(300.0)], atol=1e-14)


def test_alie_takes_the_default_z_of_n_and_f() -> None:
    np.testing.assert_allclose(target(ALIE())[0], 3.0 - 2.0 * 0.2533471)


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
    np.testing.assert_array_equal(target(ALIE(z=1.0), peers=lambda: HONEST[:1]), [1.0, 10.0])


def test_ipm_sends_a_little_against_the_mean() -> None:
    np.testing.assert_allclose(target(IPM()), [-0.3, -2.0])
    np.testing.assert_allclose(target(IPM(eps=2.0)), [-6.0, -40.0])


def test_foe_with_a_fixed_eps() -> None:
    np.testing.assert_allclose(target(FOE(eps=0.5)), [-1.5, -10.0])


def test_foe_finds_the_largest_eps_against_the_mean() -> None:
    np.testing.assert_allclose(target(FOE()), -5.0 * HONEST.mean(axis=0))


def test_foe_finds_the_eps_in_between_that_hurts_most() -> None:
    def wary(rows: Rows) -> Vector:
        """Average, but leave out what is longer than 60; the mean of HONEST is 20.2 long."""
        return np.asarray(rows[np.linalg.norm(rows, axis=1) < 60.0].mean(axis=0))

    np.testing.assert_allclose(target(FOE(), aggregate=wary), -2.5 * HONEST.mean(axis=0))


def test_foe_takes_the_least_of_equally_harmful_eps() -> None:
    np.testing.assert_allclose(target(FOE(), aggregate=lambda rows: rows[0]), -0.1 * HONEST.mean(axis=0))


def test_foe_shows_the_server_as_many_rows_as_were_sampled() -> None:
    seen: list[int] = []

    def count(rows: Rows) -> Vector:
        seen.append(len(rows))
        return mean(rows)

    target(FOE(), aggregate=count, sampled=9, sampled_byzantine=2)
    assert seen == [7, *[9] * len(FOE.GRID)]


def test_foe_in_a_cohort_without_honest_clients_starts_from_its_own_message() -> None:
    alone = view(peers=lambda: np.empty((0, 2)), sampled=2, sampled_byzantine=2)
    np.testing.assert_allclose(target(FOE(), alone), -5.0 * OWN)


@pytest.mark.parametrize(("s", "expected"), [(None, [2.0, 4.0]), (2.0, [8.0, 16.0]), (0.5, [2.0, 4.0])])
def test_shift_back_with_a_strict_majority_goes_back_to_the_start(s: float | None, expected: list[float]) -> None:
    # x - x0 = (2, 4), gamma = 0.5; s = None is s = gamma.
    majority = view(sampled=4, sampled_byzantine=3)
    np.testing.assert_array_equal(target(ShiftBack(s=s), majority), expected)


def test_a_shift_back_step_of_length_gamma_lands_at_the_share_1_minus_s() -> None:
    majority = view(sampled=4, sampled_byzantine=3)
    landed = majority.x - majority.gamma * target(ShiftBack(s=2.0), majority)
    np.testing.assert_allclose(landed, majority.x0 - (majority.x - majority.x0))


@pytest.mark.parametrize("byzantine", [1, 2])
def test_shift_back_without_a_strict_majority_hides_in_the_mean(byzantine: int) -> None:
    np.testing.assert_array_equal(target(ShiftBack(), sampled=4, sampled_byzantine=byzantine), [3.0, 20.0])


@pytest.mark.parametrize("attack", [ALIE(z=1.0), IPM(), FOE(), ShiftBack()], ids=lambda attack: attack.kind)
def test_an_empty_view_of_honest_clients_falls_back_on_the_own_message(attack: Attack) -> None:
    empty = view(peers=lambda: np.empty((0, 2)), sampled=4, sampled_byzantine=2)
    target = attack(empty, rng())
    assert target is not None
    scale = target / OWN
    assert scale[0] == pytest.approx(scale[1])


def label(attack: Attack) -> str:
    details: list[str] = [attack.direction] if isinstance(attack, MinMax | MinSum) else []
    details += [attack.view, attack.against] if isinstance(attack, Fang) else []
    details += ["jitter"] if getattr(attack, "jitter", 0) else []
    return "-".join([attack.kind, *details])


@pytest.mark.parametrize("attack", ALL, ids=label)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 3e38, "largest"])
def test_every_target_has_form_and_type_of_the_own_message_and_is_finite(
    attack: Attack, dtype: type, size: float | str
) -> None:
    length = float(np.finfo(dtype).max) if size == "largest" else float(size)
    own: Vector = np.full(3, length, dtype)
    honest: Rows = np.array([[length] * 3, [-length] * 3, [length, 0, 0]], dtype)
    seen = view(
        own=own,
        flipped=lambda: own,
        peers=lambda: honest,
        message=lambda i: honest[i],
        x=own,
        x0=-own,
        g=own,
        sampled_byzantine=3,
    )
    aimed = attack(seen, rng())
    if attack.kind == "silence":
        assert aimed is None
    else:
        assert aimed is not None
        assert (aimed.shape, aimed.dtype) == ((3,), own.dtype)
        assert np.isfinite(aimed).all() == (attack.kind not in ("nan", "inf"))


@pytest.mark.parametrize("attack", ALL, ids=label)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_model_that_has_diverged_crashes_no_attacker(attack: Attack, poison: float) -> None:
    honest = np.array([[1.0, poison], [2.0, 3.0], [poison, poison]])
    seen = view(own=honest[0], flipped=lambda: honest[0], peers=lambda: honest, message=lambda i: honest[i])
    attack(seen, rng())  # warnings are errors


@pytest.mark.parametrize("attack", ALL, ids=label)
def test_no_attack_modifies_what_it_is_shown(attack: Attack) -> None:
    own, honest = OWN.copy(), HONEST.copy()
    own.flags.writeable = honest.flags.writeable = False
    attack(view(own=own, peers=lambda: honest, message=lambda i: honest[i]), rng())
    np.testing.assert_array_equal(own, OWN)


def test_bit_flip_repacks_so_that_the_server_reads_the_exact_negative() -> None:
    q, v, f8 = RandK(k=3), np.arange(1.0, 11.0), np.dtype(np.float64)
    honest = q.compress(v, rng())
    sent = BitFlip().repack(honest, q)
    assert sent.seed == honest.seed
    np.testing.assert_array_equal(q.decompress(sent, f8), -q.decompress(honest, f8))


def test_label_flip_sends_the_packet_on_flipped_labels_as_it_is() -> None:
    assert LabelFlip.flips_labels
    honest = Identity().compress(OWN, rng())
    assert LabelFlip().repack(honest, Identity()) is honest


@pytest.mark.parametrize("kind", [ALIE, IPM, FOE, OptimalALIE, OptimalIPM, MinMax, MinSum, Fang, Mimic, ROP])
def test_attacks_on_the_honest_mean_need_fellows(kind: type[Attack]) -> None:
    with pytest.raises(ValueError, match=r'view = "own": [a-z-]+ needs at least "coalition"'):
        kind(view="own")  # type: ignore[call-arg]  # the kinds of the base class have a default


def test_who_must_be_told_the_cohort() -> None:
    told = {attack.kind for attack in ALL if attack.needs_cohort}
    told -= {"fang"}  # one of those above is omniscient
    assert told == {"shb", "mimic", "optimal-alie", "optimal-ipm"}  # these three see everything unless told otherwise
    assert not Fang().needs_cohort
    assert ShiftBack(view="own").needs_cohort
    assert ALIE(view="omniscient").needs_cohort


def test_which_attacks_repack_and_which_look_at_others() -> None:
    assert {attack.kind for attack in ALL if isinstance(attack, Repack)} == {"bf", "lf"}
    blind = {"bf", "lf", "gaussian", "zero", "big", "nan", "inf", "silence", "wire"}
    assert {attack.kind for attack in ALL if not attack.looks_at_peers} == blind


@pytest.mark.parametrize("attack", ALL, ids=label)
def test_an_attack_that_is_said_not_to_look_at_others_does_not(attack: Attack) -> None:
    looked: list[str] = []

    def peers() -> Rows:
        looked.append("peers")
        return HONEST

    def message(i: int) -> Vector:
        looked.append("message")
        return np.array(HONEST[i])

    attack(view(peers=peers, message=message), rng())
    assert bool(looked) == attack.looks_at_peers


# --- the search ---


def test_the_search_runs_the_rule_as_often_as_it_says() -> None:
    for attack, most in ((OptimalIPM(), 19), (OptimalALIE(), 19), (FOE(), 12)):
        ran: list[int] = []

        def count(rows: Rows, ran: list[int] = ran) -> Vector:
            ran.append(len(rows))
            return mean(rows)

        attack(view(aggregate=count), rng())
        assert len(ran) == most
    assert 1 + len(COARSE) + 2 * REFINEMENTS == 19


def test_the_search_closes_in_on_a_peak_between_its_grid_points() -> None:
    def peaked(rows: Rows) -> Vector:
        """Move by 1 - |eps - 5|; the last row is -eps mu, the mean of HONEST is (3, 20)."""
        return np.array([max(0.0, 1 - abs(-rows[-1, 0] / 3.0 - 5.0)), 0.0])

    rough = most_harmful(view(aggregate=peaked), HONEST, lambda eps: -eps * HONEST.mean(axis=0), (1.0, 4.8, 5.5))
    assert rough == 4.8
    fine = most_harmful(
        view(aggregate=peaked), HONEST, lambda eps: -eps * HONEST.mean(axis=0), (1.0, 4.8, 5.5), refinements=4
    )
    assert fine == pytest.approx(5.0, abs=0.06)


def test_the_search_compares_with_the_honest_rows_alone() -> None:
    # The rule gives 7 wherever an attacker is among the rows: no eps is better than another.
    def suspicious(rows: Rows) -> Vector:
        return np.full(2, 7.0 if len(rows) == 4 else 1.0)

    np.testing.assert_allclose(target(OptimalIPM(), aggregate=suspicious), -0.05 * HONEST.mean(axis=0))


def test_an_aggregate_that_is_not_finite_counts_as_the_worst() -> None:
    def fragile(rows: Rows) -> Vector:
        return np.full(2, np.nan) if rows[-1, 0] < -6.0 else np.zeros(2)

    assert target(FOE(), aggregate=fragile)[0] == pytest.approx(-2.5 * 3.0)  # the first of the grid beyond 2


def test_optimal_alie_finds_the_shift_that_a_trimming_rule_lets_through() -> None:
    def wary(rows: Rows) -> Vector:
        """Average, but leave out what is more than 3 from (3, 20) in the first coordinate."""
        return np.asarray(rows[np.abs(rows[:, 0] - 3.0) <= 3.0].mean(axis=0))

    aimed = target(OptimalALIE(), aggregate=wary)  # sigma is 2 there, so z is at most 1.5
    assert 1.4 < (3.0 - aimed[0]) / 2.0 <= 1.5
    np.testing.assert_allclose((20.0 - aimed[1]) / np.sqrt(300.0), (3.0 - aimed[0]) / 2.0)


@pytest.mark.parametrize("attack", [FOE(), OptimalALIE(), OptimalIPM()], ids=label)
def test_a_searching_attack_is_at_least_as_bad_as_each_it_tries(attack: Attack) -> None:
    honest = np.random.default_rng(3).normal(1.0, 1.0, (7, 5))
    rule = CoordinateMedian()

    def harm(vector: Vector) -> float:
        rows = np.concatenate([honest, np.tile(vector, (3, 1))])
        return float(np.linalg.norm(rule(rows, 3, rng()) - rule(honest, 3, rng())))

    aimed = target(
        attack,
        own=honest[0],
        peers=lambda: honest,
        sampled=10,
        sampled_byzantine=3,
        aggregate=lambda rows: rule(rows, 3, rng()),
    )
    mu, sigma = honest.mean(axis=0), honest.std(axis=0, ddof=1)
    for factor in FOE.GRID if isinstance(attack, FOE) else COARSE:
        other = mu - factor * sigma if isinstance(attack, OptimalALIE) else -factor * mu
        assert harm(aimed) >= harm(other) - 1e-12


# --- min-max and min-sum ---


def bisected(rows: Rows, p: Vector, allowed: float, cost: Any) -> float:
    """The largest gamma as the paper finds it: by bisection on the cost of mu + gamma p."""
    low, high = 0.0, 1e6
    for _ in range(200):
        gamma = (low + high) / 2
        low, high = (gamma, high) if cost(rows.mean(axis=0) + gamma * p) <= allowed else (low, gamma)
    return low


@pytest.mark.parametrize("direction", ["unit", "std", "sign"])
@pytest.mark.parametrize("kind", [MinMax, MinSum])
def test_min_max_and_min_sum_go_as_far_as_bisection_does(kind: Any, direction: str) -> None:
    rows = np.random.default_rng(7).normal(0.5, 2.0, (6, 4))
    mu = rows.mean(axis=0)
    p = {"unit": -mu / np.linalg.norm(mu), "std": -rows.std(axis=0, ddof=1), "sign": -np.sign(mu)}[direction]
    d2 = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    if kind is MinMax:
        gamma = bisected(rows, p, d2.max(), lambda v: ((rows - v) ** 2).sum(axis=1).max())
    else:
        gamma = bisected(rows, p, d2.sum(axis=1).max(), lambda v: ((rows - v) ** 2).sum())
    aimed = target(kind(direction=direction), own=rows[0], peers=lambda: rows)
    np.testing.assert_allclose(aimed, mu + gamma * p, rtol=1e-5)


def test_min_max_by_hand() -> None:
    # On a line, 0 and 2: mu = 1, the rows are 2 apart, so -1 and 2 from it is as far as one may go down: 0.
    rows = np.array([[0.0], [2.0]])
    assert target(MinMax(direction="sign"), own=rows[0], peers=lambda: rows)[0] == pytest.approx(0.0, abs=1e-5)
    # Squared distances from m sum up to 2 + 2 (m - 1)^2, from either row to 4: m = 0 again.
    assert target(MinSum(direction="sign"), own=rows[0], peers=lambda: rows)[0] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("kind", [MinMax, MinSum])
def test_a_cloud_of_one_point_leaves_no_room(kind: Any) -> None:
    np.testing.assert_array_equal(target(kind(), peers=lambda: HONEST[:1]), HONEST[0])
    np.testing.assert_array_equal(target(kind(), peers=lambda: HONEST[[1, 1, 1]]), HONEST[1])
    around = np.array([[1.0, -1.0], [-1.0, 1.0]])  # a mean of 0 has no direction
    np.testing.assert_array_equal(target(kind(), peers=lambda: around), [0.0, 0.0])


# --- fang ---


def plan(attack: Individual, seats: Sequence[int] = (4, 6), **other: Any) -> Rows:
    """What each of these seats sends."""
    sent = attack.plan(view(seats=seats, **other), rng())
    return np.array([sent(seat) for seat in seats])


def test_fang_draws_beyond_the_honest_values_on_the_side_against_their_mean() -> None:
    # Signs of the means: 1, 1, -1, -1, 0, 1. Least values where they are 1, else largest: -1, 2, 4, -3, -, 0.
    rows = np.array([[-1.0, 2.0, -9.0, -3.0, -1.0, 0.0], [4.0, 3.0, 4.0, -5.0, 1.0, 5.0]])
    low, high = np.array([[-3.0, -1.0], [2 / 3, 2.0], [4.0, 12.0], [-3.0, -1.0], [0.0, 0.0], [0.0, 0.0]]).T
    seats = range(100, 600)
    sent = plan(Fang(b=3.0, view="omniscient"), seats, own=rows[0], peers=lambda: rows)
    assert ((low <= sent) & (sent <= high)).all()
    middle, length = (low + high) / 2, high - low
    np.testing.assert_allclose(sent.mean(axis=0), middle, atol=0.05 * length.max())  # 500 uniform draws: 4 deviations
    np.testing.assert_allclose(sent.std(axis=0), length / np.sqrt(12), atol=0.05 * length.max())
    assert abs(np.corrcoef(sent[:, 0], sent[:, 1])[0, 1]) < 0.2


def test_fang_with_the_view_of_its_coalition_stays_three_to_four_deviations_away() -> None:
    rows = np.array([[1.0, -10.0, 1.0], [3.0, -10.0, -1.0], [5.0, -40.0, 0.0]])  # means 3, -20, 0; deviations 2, ...
    sent = plan(Fang(), range(50), own=rows[0], peers=lambda: rows)
    shifted = (sent - rows.mean(axis=0))[:, :2] / rows.std(axis=0, ddof=1)[:2]
    assert ((shifted[:, 0] >= -4) & (shifted[:, 0] <= -3)).all()
    assert ((shifted[:, 1] >= 3) & (shifted[:, 1] <= 4)).all()
    assert (sent[:, 2] == 0).all()
    assert len(np.unique(sent[:, 0])) == 50


def plain_lam(rows: Rows, copies: int) -> float:
    """Fang's search by its definition: Krum on all rows, with the vector written out, for every lam."""
    h, d = rows.shape
    s = np.sign(rows.mean(axis=0))
    sums = [np.sort([float(((a - b) ** 2).sum()) for b in rows])[1 : h - 1].sum() for a in rows]
    start = lam = np.sqrt(min(sums) / ((h - copies - 1) * d)) + max(np.linalg.norm(row) for row in rows) / np.sqrt(d)
    while lam >= 1e-5 * start:
        crowd = np.concatenate([rows, np.tile(-lam * s, (copies, 1))])
        scores = [np.sort([float(((a - b) ** 2).sum()) for b in crowd])[1 : h - 1].sum() for a in crowd]
        if int(np.argmin(scores)) >= h:
            break
        lam /= 2
    return float(lam)


@pytest.mark.parametrize("copies", [1, 2, 5])
@pytest.mark.parametrize("offset", [0.05, 0.5, 3.0])
def test_fang_against_krum_finds_the_factor_of_a_plain_search(copies: int, offset: float) -> None:
    rows = np.random.default_rng(8).normal(offset, 1.0, (11, 30))
    sent = plan(Fang(), range(11, 11 + copies), own=rows[0], peers=lambda: rows, sampled_byzantine=copies, rule="krum")
    expected = -plain_lam(rows, copies) * np.sign(rows.mean(axis=0))
    np.testing.assert_allclose(sent, np.tile(expected, (copies, 1)), rtol=1e-9)


def test_krum_chooses_what_fang_sends_and_goes_the_wrong_way() -> None:
    rows = np.random.default_rng(8).normal(0.2, 1.0, (15, 30))
    sent = Fang().vectors(rows, 5, rule=Krum())
    chosen = Krum()(np.concatenate([rows, sent]), 5)
    np.testing.assert_array_equal(chosen, sent[0])
    assert chosen @ rows.mean(axis=0) < 0


@pytest.mark.parametrize("rule", ["krum", "multi-krum", "bulyan", "cm", "rfa", ""])
def test_fang_takes_the_form_that_the_rule_calls_for_unless_told(rule: str) -> None:
    by_distances = rule in ("krum", "multi-krum", "bulyan")
    for against, same in (("auto", by_distances), ("krum", True), ("coordinates", False)):
        first, second = plan(Fang(against=against), rule=rule)  # type: ignore[arg-type]  # a literal
        assert np.array_equal(first, second) == same


def test_fang_turns_the_trimmed_mean_of_an_honest_cloud_around() -> None:
    rows = np.random.default_rng(1).normal(0.2, 1.0, (15, 200))
    moved = {}
    for attack in (ALIE(), Fang(view="omniscient")):
        crowd = np.concatenate([rows, attack.vectors(rows, 5, rule=TrimmedMean(), rng=3)])
        moved[attack.kind] = float(np.sum(rows.mean(axis=0) * TrimmedMean()(crowd, 5)))
    assert moved["fang"] < 0 < moved["alie"]


# --- jitter ---

JITTERED: list[Individual] = [
    ALIE(jitter=1.0),
    IPM(jitter=1.0),
    FOE(jitter=1.0, eps=2.0),
    MinMax(jitter=1.0),
    MinSum(jitter=1.0),
    ShiftBack(jitter=1.0),
]


@pytest.mark.parametrize("attack", JITTERED, ids=label)
@pytest.mark.parametrize("seats", [(4, 6), (1, 2, 3, 5, 8, 13)])
def test_jitter_leaves_the_mean_of_the_attackers_where_it_was(attack: Individual, seats: tuple[int, ...]) -> None:
    calm_one = replace(attack, jitter=0.0)  # type: ignore[call-arg]  # all of these have it
    sent = plan(attack, seats)
    np.testing.assert_allclose(sent.mean(axis=0), target(calm_one), rtol=1e-12)
    assert len(np.unique(sent[:, 0])) == len(seats)


@pytest.mark.parametrize("jitter", [0.5, 1.0])
def test_with_jitter_attackers_are_spread_as_honest_rows_are(jitter: float) -> None:
    honest = np.random.default_rng(4).normal(0.0, [1.0, 10.0], (20, 2))
    deviation = honest.std(axis=0, ddof=1)
    spread = np.zeros(2)
    for k in range(400):
        sent = plan(
            ALIE(z=1.0, jitter=jitter),
            (7, 8, 9),
            peers=lambda: honest,
            draw=lambda i, k=k: np.random.default_rng([i, k]),
        )
        spread += sent.var(axis=0, ddof=0) / 400
    # Each of 3 deviates from the exact mean by a variance of jitter^2 sigma^2.
    np.testing.assert_allclose(np.sqrt(spread), jitter * deviation, rtol=0.1)


def test_jitter_by_its_formula() -> None:
    seats = (4, 6, 9)
    xi = np.array([np.random.default_rng(seat).standard_normal(2) for seat in seats])
    expected = target(ALIE(z=1.5)) + 2.0 * HONEST.std(axis=0, ddof=1) * (xi - xi.mean(axis=0)) * np.sqrt(3 / 2)
    np.testing.assert_allclose(plan(ALIE(z=1.5, jitter=2.0), seats), expected, rtol=1e-13)


def test_a_single_attacker_has_nobody_to_differ_from() -> None:
    np.testing.assert_array_equal(plan(ALIE(jitter=1.0), (4,)), target(ALIE())[None, :])


@pytest.mark.parametrize("attack", [*JITTERED, Fang(), Fang(view="omniscient"), Fang(against="krum")], ids=label)
def test_a_plan_is_the_same_from_every_seat_and_what_a_call_returns(attack: Individual) -> None:
    ours = plan(attack)
    for i, seat in enumerate((4, 6)):
        theirs = attack.plan(view(worker=seat), rng())
        np.testing.assert_array_equal(theirs(6), ours[1])
        np.testing.assert_array_equal(theirs(4), ours[0])
        np.testing.assert_array_equal(target(attack, view(worker=seat)), ours[i])


# --- mimic ---


def test_mimic_copies_the_client_furthest_along_the_direction_of_largest_variance() -> None:
    # Varies along (1, 0) most; there the projections are 1, -5, 2, and 2 + far in the second coordinate is no merit.
    rows = np.array([[1.0, 0.3], [-5.0, 0.0], [2.0, -0.4], [2.0, 0.5]])
    known: dict[str, Any] = {
        "ids": lambda: [7, 8, 9, 11],
        "peers": lambda: rows,
        "message": lambda i: rows[[7, 8, 9, 11].index(i)],
    }
    assert Mimic().whom(view(**known)) == 8
    np.testing.assert_array_equal(target(Mimic(), **known), rows[1])


def test_mimic_agrees_with_a_singular_value_decomposition() -> None:
    rows = np.random.default_rng(5).normal(0.3, 1.0, (8, 30)).astype(np.float32)
    z = np.linalg.svd(rows - rows.mean(axis=0))[2][0]
    seen = view(ids=lambda: range(8), peers=lambda: rows)
    assert Mimic().whom(seen) == int(np.argmax(np.abs(rows @ z)))


def test_mimic_with_a_target_costs_one_message_and_falls_back_where_it_is_not_in_view() -> None:
    def nobody() -> Rows:
        raise AssertionError("no other message is needed")

    assert Mimic(target=1).whom(view(peers=nobody)) == 1
    assert Mimic(target=17).whom(view()) == Mimic().whom(view())
    empty = view(ids=list, peers=lambda: np.empty((0, 2)))
    assert Mimic().whom(empty) == empty.worker


# --- rop ---


def test_rop_starts_at_the_servers_last_aggregate_and_pushes_at_a_right_angle() -> None:
    g = np.array([0.0, 2.0])
    aimed = target(ROP(lam=1.0, z=3.0), g=g)  # ones - its part along g is (1, 0)
    np.testing.assert_allclose(aimed, [3.0, 2.0], atol=1e-15)


def test_rop_by_its_formula() -> None:
    g, mu = np.array([4.0, -2.0]), HONEST.mean(axis=0)
    attack = ROP(lam=0.7, z=2.0, angle=120.0, location=0.25)
    u = 0.7 * g + 0.3 * mu
    u /= np.linalg.norm(u)
    p = np.ones(2) - np.ones(2) @ u * u
    p /= np.linalg.norm(p)
    push = np.sin(2 * np.pi / 3) * p + np.cos(2 * np.pi / 3) * u
    expected = 0.25 * g + 0.75 * mu + 2.0 * push
    np.testing.assert_allclose(target(attack, g=g), expected)
    assert np.linalg.norm(target(attack, g=g) - 0.25 * g - 0.75 * mu) == pytest.approx(2.0)


def test_rop_without_a_last_aggregate_takes_the_mean_for_it() -> None:
    np.testing.assert_allclose(target(ROP()), target(ROP(), g=HONEST.mean(axis=0)))


# --- wire faults and remarks ---


def test_a_wire_fault_sends_the_honest_message() -> None:
    np.testing.assert_array_equal(target(WireFault(fault=Fault.TRUNCATED)), OWN)


def test_several_wire_faults_are_shared_out_among_the_workers() -> None:
    attack = WireFault(fault=(Fault.LATE, Fault.GARBAGE))
    assert [attack.of(i) for i in range(4)] == [Fault.LATE, Fault.GARBAGE] * 2
    assert {WireFault(fault=Fault.REPLAY).of(i) for i in range(4)} == {Fault.REPLAY}
    with pytest.raises(ValueError, match="must name at least one"):
        WireFault(fault=())


@pytest.mark.parametrize("fault", Fault)
def test_every_wire_fault_has_a_reason_and_a_nearest_one_in_the_records(fault: Fault) -> None:
    assert fault.reason
    assert fault.nearest not in (Fault.TRUNCATED, Fault.GARBAGE, Fault.DISCONNECT)
    assert fault.nearest.nearest is fault.nearest


@pytest.mark.parametrize(
    ("attack", "n", "f", "words"),
    [
        (ALIE(), 5, 1, "z = 0 for n = 5, f = 1: it sends the plain mean"),
        (ALIE(z=0.0), 20, 5, "sends the plain mean"),
        (ALIE(z=1.0), 5, 1, "knows a single message"),
        (MinMax(), 5, 1, "knows a single message"),
        (Mimic(view="coalition"), 5, 1, "knows a single message"),
        (ALIE(), 20, 5, None),
        (ALIE(view="omniscient"), 4, 1, None),
        (IPM(), 5, 1, None),
        (IPM(jitter=1.0), 5, 1, "jitter = 1, which has no effect with one Byzantine client"),
        (ALIE(z=0.0, jitter=1.0), 20, 5, "sends the plain mean"),
        (ShiftBack(jitter=1.0), 20, 5, None),
        (Fang(), 5, 1, "knows a single message"),
        (Fang(against="krum"), 5, 1, None),
        (Fang(view="omniscient"), 5, 1, None),
    ],
)
def test_remarks(attack: Attack, n: int, f: int, words: str | None) -> None:
    remark = attack.remark(n, f)
    assert (remark is None) if words is None else (remark is not None and words in remark)


def test_flaws() -> None:
    assert ALIE().validate(20, 5) is None
    assert ALIE(z=1.0).validate(20, 11) is None
    assert "alie has no default z for f = 11 of n = 20" in str(ALIE().validate(20, 11))
    assert Mimic(target=19).validate(20, 5) is None
    assert "target = 20: must be below clients = 20" in str(Mimic(target=20).validate(20, 5))


# --- the arithmetic behind ---


def test_moments_are_blockwise_and_those_of_numpy() -> None:
    rows = np.random.default_rng(2).normal(size=(5, 60_000)).astype(np.float32)
    mu, sigma = mean_and_deviation(rows)
    np.testing.assert_array_equal(mu, rows.astype(np.float64).mean(axis=0))
    np.testing.assert_allclose(sigma, rows.astype(np.float64).std(axis=0, ddof=1), rtol=1e-14)


def test_calm_measures_only_what_cannot_be_squared() -> None:
    assert calm(HONEST)[0] is HONEST
    rows, unit = calm(1e300 * HONEST)
    assert float(np.max(np.abs(rows))) == 1.0
    np.testing.assert_allclose(rows * unit, 1e300 * HONEST)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (ALIE, {"z": float("nan")}, "z = nan: must be finite"),
        (IPM, {"eps": 0.0}, "eps = 0.0: must be above 0"),
        (FOE, {"eps": -1.0}, "eps = -1.0: must be above 0"),
        (ShiftBack, {"s": float("inf")}, "s = inf: must be above 0 and finite"),
        (Big, {"value": float("inf")}, "value = inf: must be finite"),
        (Gaussian, {"sigma": 0.0}, "sigma = 0.0: must be above 0"),
        (Fang, {"b": 0.5}, "b = 0.5: must be above 1"),
        (Fang, {"b": float("inf")}, "b = inf: must be above 0 and finite"),
        (ALIE, {"jitter": float("nan")}, "jitter = nan: must be at least 0 and finite"),
        (MinMax, {"jitter": -0.5}, "jitter = -0.5: must be at least 0 and finite"),
        (ShiftBack, {"jitter": 1.0, "view": "own"}, 'jitter = 1.0 with view = "own": a single message has no spread'),
        (Mimic, {"target": -1}, "target = -1: must be 0 or more"),
        (ROP, {"z": 0.0}, "z = 0.0: must be above 0"),
        (ROP, {"lam": 1.5}, "lam = 1.5: must be from 0 to 1"),
        (ROP, {"angle": float("nan")}, "angle = nan: must be finite"),
        (ROP, {"location": -0.5}, "location = -0.5: must be from 0 to 1"),
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
