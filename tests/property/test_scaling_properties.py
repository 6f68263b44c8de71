"""f liars among the reported statistics move no figure of the scaling beyond what honest parties reported."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.scaling import FLOOR, LARGEST, ColumnStatistics, Statistics, federated, read_statistics

COLUMNS = ("a", "b")
NUMBERS = st.floats(-1e6, 1e6)
HOSTILE = st.sampled_from([LARGEST, -LARGEST, 0.0, 1e-300])


def reports(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Statistics]:
    """Statistics of one party."""
    column = st.builds(
        lambda mean, variance, missing, median: ColumnStatistics(mean, abs(variance), missing, median),
        numbers,
        numbers,
        st.floats(0, 1),
        numbers,
    )
    return st.fixed_dictionaries(dict.fromkeys(COLUMNS, column))


@st.composite
def federations(draw: st.DrawFn) -> tuple[list[Statistics], list[Statistics]]:
    """Honest reports, and those of at most f liars, who may also report nothing, of at least 2f + 1 parties."""
    f = draw(st.integers(0, 3))
    liars = draw(st.lists(reports(HOSTILE), max_size=f))
    honest = draw(st.lists(reports(NUMBERS), min_size=max(1, 2 * f + 1 - len(liars)), max_size=2 * f + 3))
    return honest, liars


@given(federation=federations())
def test_every_figure_lies_within_what_honest_parties_reported(
    federation: tuple[list[Statistics], list[Statistics]],
) -> None:
    honest, liars = federation
    scaling = federated([*liars, *honest], len(liars), COLUMNS)
    for name in COLUMNS:
        found, mine = scaling.columns[name], [report[name] for report in honest]
        assert min(each.mean for each in mine) <= found.centre <= max(each.mean for each in mine)
        assert min(each.median for each in mine) <= found.fill <= max(each.median for each in mine)
        low, high = (math.sqrt(bound([each.variance for each in mine])) for bound in (min, max))
        constant = low <= max(FLOOR * abs(found.centre), 1 / LARGEST)
        assert low <= found.spread <= high or (constant and found.spread == 1)


@given(honest=st.lists(reports(NUMBERS), max_size=4))
def test_fewer_than_2f_plus_1_parties_give_no_scaling(honest: list[Statistics]) -> None:
    f = max(1, (len(honest) + 1) // 2)
    with pytest.raises(ValueError, match=rf'column "a": {len(honest)} parties.*2f \+ 1 = {2 * f + 1}'):
        federated(honest, f, COLUMNS)


@given(
    report=st.one_of(
        st.text(max_size=60),
        st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5), st.lists),
        st.dictionaries(
            st.sampled_from([*COLUMNS, "c"]),
            st.dictionaries(st.sampled_from(["mean", "variance", "missing", "median", "more"]), st.floats()),
        ),
    )
)
def test_whatever_a_party_reports_is_read_or_refused_in_one_line(report: Any) -> None:
    try:
        found = read_statistics(report, COLUMNS)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017  # either way is right
    else:
        assert found.keys() <= set(COLUMNS)
        assert all(math.isfinite(column.mean) and column.variance >= 0 for column in found.values())
