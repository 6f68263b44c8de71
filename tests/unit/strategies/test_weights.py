"""Weights as numbers: their ratios, the cap on shares, medians by weight."""

from fractions import Fraction

import numpy as np
import pytest

from strategies.weights import TOTAL, capped, heaviest, middle, whole_weights


@pytest.mark.parametrize(
    ("weights", "whole"),
    [
        ([3.0, 1.0], (3, 1)),
        ([0.3, 0.1], (3, 1)),  # as they are typed, not as binary fractions
        ([6, 2, 4], (3, 1, 2)),
        ([1e300, 5e299], (2, 1)),
        ([1e-300, 5e-301], (2, 1)),
        ([2.5, 2.5, 2.5], ()),
        ([7.0], ()),
    ],
)
def test_weights_are_whole_numbers_in_the_same_ratios(weights: list[float], whole: tuple[int, ...]) -> None:
    assert whole_weights(weights) == whole


def test_ratios_without_a_small_denominator_are_rounded() -> None:
    weights = [np.pi, np.e, 1e-30]
    whole = whole_weights(weights)
    assert abs(sum(whole) - TOTAL) <= len(weights)
    assert whole[0] / sum(whole) == pytest.approx(np.pi / sum(weights), abs=2 / TOTAL)
    assert whole[2] == 1  # it does not vanish


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_what_is_no_weight_is_refused(bad: float) -> None:
    for make in (whole_weights, lambda weights: capped(weights, 0.5)):
        with pytest.raises(ValueError, match=r"weights\[1\] = .*: must be a finite number above 0"):
            make([1.0, bad])


@pytest.mark.parametrize(
    ("weights", "cap", "shares"),
    [
        ([8, 1, 1], 0.5, ["1/2", "1/4", "1/4"]),
        ([1, 8, 1], 0.5, ["1/4", "1/2", "1/4"]),
        ([60, 30, 5, 5], 0.4, ["2/5", "2/5", "1/10", "1/10"]),  # the second reaches the cap because of the first
        ([2, 1, 1], 0.5, ["1/2", "1/4", "1/4"]),
        ([5, 3, 1], 1.0, ["5/9", "1/3", "1/9"]),
        ([5, 3, 1], 1 / 3, ["1/3", "1/3", "1/3"]),
        ([5, 1], 0.5, ["1/2", "1/2"]),
    ],
)
def test_the_cap_holds_for_all(weights: list[float], cap: float, shares: list[str]) -> None:
    assert capped(weights, cap) == [Fraction(share) for share in shares]


def test_a_cap_below_one_nth_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0.3: 3 shares of at most that cannot sum to 1; at least 1/3 = 0.333333"):
        capped([1, 2, 3], 0.3)


def test_the_heaviest_and_the_middle() -> None:
    masses = np.array([1, 5, 2, 4])
    assert [heaviest(masses, f) for f in range(6)] == [0, 5, 9, 11, 12, 12]
    values = np.array([4.0, 1.0, 3.0, np.inf])
    assert middle(values, masses) == (3.0, 3.0)
    assert middle(values, np.array([1, 6, 1, 4])) == (1.0, 3.0)  # exactly half at the first
    assert middle(values, np.ones(4, np.int64)) == (3.0, 4.0)
