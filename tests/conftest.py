"""What several test files need: the folder of real data sets."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that BREAKWATER_DATA names; without it the tests on real data are left out."""
    folder = os.environ.get("BREAKWATER_DATA")
    if not folder:
        pytest.skip("needs real data: set BREAKWATER_DATA to the folder that holds libsvm/ and MNIST/")
    return Path(folder)
