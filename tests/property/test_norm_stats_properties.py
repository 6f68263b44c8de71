"""Running statistics of batch norm from clients: f liars of m > 2f move no number beyond what honest clients sent."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from strategies.batch_statistics import combined

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=64)


@given(st.data(), st.integers(0, 4), st.integers(1, 4), st.integers(1, 4))
def test_f_liars_of_more_than_2f_cannot_leave_the_range_of_honest_answers(
    data: st.DataObject, byzantine: int, more: int, size: int
) -> None:
    honest = data.draw(arrays(np.float64, (byzantine + more, size), elements=FINITE))
    variances = data.draw(arrays(bool, size))
    honest[:, variances] = np.abs(honest[:, variances])
    lies = data.draw(arrays(np.float64, (byzantine, size), elements=FINITE))
    found = combined(data.draw(st.permutations([*honest, *lies])), variances, byzantine)
    assert found is not None
    assert np.all(honest.min(axis=0) <= found)
    assert np.all(found <= honest.max(axis=0))
    assert np.all(found[variances] >= 0)
