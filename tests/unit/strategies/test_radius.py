"""The radius that sets itself, on rows of one number."""

from math import inf

import numpy as np
import pytest

from strategies.radius import AUTO, FACTOR, WINDOW, observe, radius


def rows(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float64)[:, None]


def test_a_given_alpha_is_a_factor_of_the_step() -> None:
    assert radius(2.0, rows(7), 3.0) == 6
    assert radius(2.0, rows(7), 0.0) == 0
    assert radius(None, rows(7), 0.0) is None, "no clipping"
    assert radius(1e300, rows(7), 1e300) is None, "beyond all numbers"
    assert radius(inf, rows(7), 0.0) is None


def test_a_round_notes_the_lower_median_of_its_ratios() -> None:
    assert observe((), rows(-8, 2, 1e300), 2.0) == (4.0,)
    assert observe((4.0,), rows(2, 8, 1e300, 1e300), 2.0) == (4.0, 4.0), "a tie counts for the shorter"
    assert observe((4.0,), rows(), 2.0) == (4.0,)
    assert observe((4.0,), rows(1), 0.0) == (4.0,), "x stayed"


def test_only_the_last_notes_are_kept() -> None:
    notes: tuple[float, ...] = ()
    for k in range(WINDOW + 5):
        notes = observe(notes, rows(k), 1.0)
    assert notes == tuple(float(k) for k in range(5, WINDOW + 5))


def test_alpha_is_learnt_from_the_notes_and_not_from_this_round() -> None:
    notes = (1.0, 3.0, 1e9)
    assert radius(AUTO, rows(1e30, 1e30), 0.5, notes) == FACTOR * 3.0 * 0.5
    assert radius(AUTO, rows(1e30, 1e30), 0.5, (1.0, 1e9)) == FACTOR * 1.0 * 0.5


def test_before_any_note_the_round_speaks_for_itself() -> None:
    assert radius(AUTO, rows(1, 2, 1e30), 0.5, ()) == FACTOR * 2.0
    assert radius(AUTO, rows(1, 2, 1e30), 0.5) == FACTOR * 2.0
    assert radius(AUTO, rows(), 0.5) is None


def test_the_largest_numbers_there_are_do_no_harm() -> None:
    largest = np.finfo(np.float64).max
    notes = observe((1.0, 1.0), np.full((3, 4), largest), 1e-300)
    assert notes == (1.0, 1.0, inf)
    assert radius(AUTO, rows(1), 2.0, notes) == 2 * FACTOR
    assert radius(AUTO, rows(1), 0.0, [inf]) == 0


@pytest.mark.parametrize("corrupt", range(WINDOW // 2 + 1))
def test_fewer_than_half_of_the_rounds_cannot_inflate_it(corrupt: int) -> None:
    notes: tuple[float, ...] = ()
    for k in range(WINDOW):
        notes = observe(notes, rows(1e30, 1e30, 1.0) if k < corrupt else rows(1e30, 1.0, 1.5), 1.0)
    assert radius(AUTO, rows(1), 1.0, notes) == FACTOR * 1.5
