"""What several test files need: the folder of real data sets, and a Flower that imports where warnings are errors."""

import os
import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():
    # Flower imports typer, some versions of which use names that click has deprecated. Not ours to mend.
    warnings.filterwarnings("ignore", r"'click\.", DeprecationWarning)
    import flwr.clientapp
    import flwr.serverapp  # noqa: F401  # for its import alone


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that BREAKWATER_DATA names; without it the tests on real data are left out."""
    folder = os.environ.get("BREAKWATER_DATA")
    if not folder:
        pytest.skip("needs real data: set BREAKWATER_DATA to the folder that holds libsvm/ and MNIST/")
    return Path(folder)
