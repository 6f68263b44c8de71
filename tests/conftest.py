"""What all tests need: a log of their own, the folder of real data sets, a Flower that imports cleanly."""

import logging
import os
import warnings
from collections.abc import Iterator
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


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes with one thread, as in our processes: several tests at once would be in each other's way."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _a_log_of_ones_own() -> Iterator[None]:
    """What a command sets up for its log is gone when the test ends."""
    logger = logging.getLogger("breakwater")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    for handler in logger.handlers:
        if handler not in handlers:
            handler.close()
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate = propagate
