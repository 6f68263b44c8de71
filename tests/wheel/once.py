"""A pytest plugin that runs each test function once, with the first of its parameters.

It is copied, as ``renamed`` is, into the environment whose wheel the unit tests run on: there they show that every
module works under its name in the wheel, for which one case of a test is as good as hundreds.
"""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out every item whose function, without parameters, has come before."""
    first: dict[str, pytest.Item] = {}
    for item in items:
        first.setdefault(item.nodeid.partition("[")[0], item)
    kept = list(first.values())
    chosen = set(map(id, kept))
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in chosen])
    items[:] = kept
