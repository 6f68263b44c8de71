"""Fixtures for tests of pages: processes that are forked with everything imported."""

from collections.abc import Iterator

import pytest

from tests.integration.fork_server import Nursery


@pytest.fixture(scope="module")
def one_nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture
def nursery(one_nursery: Nursery) -> Iterator[Nursery]:
    yield one_nursery
    one_nursery.swept(strict=False)
