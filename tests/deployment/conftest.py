"""Processes, reaped in any case."""

from collections.abc import Iterator

import pytest

from tests.integration.processes import Processes


@pytest.fixture
def processes() -> Iterator[Processes]:
    with Processes() as started:
        yield started
