"""Of clients' claims: f liars can neither cause nor prevent that a run goes back, whatever they claim and claimed."""

import math

from hypothesis import given
from hypothesis import strategies as some

from tests.unit.strategies.test_safeguard import goes_back

LIES = some.floats(0, 1e9) | some.sampled_from([math.nan, math.inf])


@given(some.data())
def test_f_liars_can_neither_cause_nor_prevent_that_a_run_goes_back(data: some.DataObject) -> None:
    f = data.draw(some.integers(0, 4))
    honest = [f"h{i}" for i in range(data.draw(some.integers(2 * f + 1, 2 * f + 6)))]
    liars = [f"liar{i}" for i in range(f)]
    best = {name: data.draw(some.floats(0.1, 10)) for name in honest}
    lied = {name: data.draw(some.floats(0, 1e9)) for name in liars}
    now = {name: data.draw(LIES) for name in liars}
    well = {name: loss * data.draw(some.floats(0.1, 2)) for name, loss in best.items()}
    assert not goes_back(best | lied, well | now, f)
    bad = {name: data.draw(some.sampled_from([2.1 * loss, 1e6, math.nan])) for name, loss in best.items()}
    assert goes_back(best | lied, bad | now, f)
