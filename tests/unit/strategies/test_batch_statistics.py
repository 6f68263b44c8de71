"""Running statistics that clients answer: what is no answer, medians and averages by hand."""

from typing import Any

import numpy as np
import pytest

from strategies.batch_statistics import NormStats, averaged, combined, flaw_of, shortage

VARIANCES = np.array([False, True])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.5, 0.0], ""),
        ([-3.0, 1e300], ""),
        ([0.5, -1e-9], "out of bounds: a variance is -1e-09, must be at least 0"),
        ([np.nan, 1.0], "not finite: 1 of 2 statistics"),
        ([np.inf, -np.inf], "not finite: 2 of 2 statistics"),
        ([0.5], "wrong shape: (1,), expected (2,)"),
        ([], "wrong shape: (0,), expected (2,)"),
        ([[0.5, 1.0]], "wrong shape: (1, 2), expected (2,)"),
        (np.array([0.5, 1.0], np.float32), "wrong dtype: float32, expected float64"),
    ],
)
def test_an_answer_is_finite_of_the_right_length_and_has_no_negative_variance(values: Any, said: str) -> None:
    assert flaw_of(np.asarray(values), VARIANCES) == said


def test_the_median_is_by_coordinate_and_needs_more_than_2f_answers() -> None:
    answers = [np.array(each) for each in ([1.0, 9.0], [3.0, 1.0], [2.0, 2.0], [7.0, 4.0])]
    assert combined(answers[:3], VARIANCES, 1).tolist() == [2.0, 2.0]  # type: ignore[union-attr]  # there is one
    assert combined(answers, VARIANCES, 1).tolist() == [2.5, 3.0]  # type: ignore[union-attr]
    assert combined(answers[:2], VARIANCES, 1) is None
    assert combined([], VARIANCES, 0) is None
    assert answers[0].tolist() == [1.0, 9.0]  # as it was
    low = [np.array([-1.0, -1.0])] * 3
    assert combined(low, VARIANCES, 1).tolist() == [-1.0, 0.0]  # type: ignore[union-attr]
    tiny = [np.array([5e-324, 5e-324])] * 2  # whose half is 0
    assert combined(tiny, VARIANCES, 0).tolist() == [5e-324, 5e-324]  # type: ignore[union-attr]


def test_the_first_statistics_are_taken_whole_and_later_ones_weigh_a_tenth_a_round() -> None:
    first = averaged(None, np.array([1.0, 2.0]), 4)
    assert (first.values.tolist(), first.round) == ([1.0, 2.0], 4)
    next_ = averaged(first, np.array([2.0, 0.0]), 5)
    np.testing.assert_allclose(next_.values, [1.1, 1.8])
    assert next_.round == 5
    later = averaged(first, np.array([2.0, 0.0]), 54)  # 50 rounds since: hardly anything is left
    np.testing.assert_allclose(later.values, [2.0, 0.0], atol=0.02)
    np.testing.assert_allclose(averaged(first, np.array([2.0, 0.0]), 6).values, [1.19, 1.62])


def test_too_few_answers_are_named_with_what_is_used_instead() -> None:
    begun = "batch norm: 2 usable answers, and up to 1 may be lies; at least 3 are needed (2 byzantine + 1): "
    assert shortage(2, 1, None) == f"{begun}those that model() made stay in use"
    assert shortage(2, 1, NormStats(np.zeros(2), 7)) == f"{begun}those of round 7 stay in use"
    assert shortage(0, 0, None).startswith("batch norm: 0 usable answers; at least 1 are needed")
