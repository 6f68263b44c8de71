"""Former names of modules work for one release, with a warning that says the new one."""

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("strategies.algorithm", "strategies.method", "Ask"),
        ("strategies.aggregators.presteps", "strategies.aggregators.preaggregators", "Bucketing"),
        ("strategies.aggregators.mixture", "strategies.aggregators.weighted_rows", "WeightedRows"),
        ("link.errors", "foundation.errors", "ConfigError"),
    ],
)
def test_a_former_name_gives_the_same_objects_and_a_warning(old: str, new: str, name: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(FutureWarning, match=f"{old} is now {new}; the old name goes with the next release") as seen:
        former = importlib.import_module(old)
    assert len(seen) == 1
    assert getattr(former, name) is getattr(importlib.import_module(new), name)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_former_names_of_classes() -> None:
    from strategies.aggregators import mixture, preaggregators, presteps, weighted_rows

    assert mixture.Mixture is weighted_rows.WeightedRows
    assert presteps.PreStep is preaggregators.PreAggregator
