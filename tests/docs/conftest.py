"""Fixtures for tests of pages: processes that are forked with everything imported."""

from collections.abc import Iterator

import pytest

from tests.integration.fork_server import ForkServer


@pytest.fixture(scope="module")
def one_fork_server() -> Iterator[ForkServer]:
    with ForkServer() as fork_server:
        yield fork_server


@pytest.fixture
def fork_server(one_fork_server: ForkServer) -> Iterator[ForkServer]:
    yield one_fork_server
    one_fork_server.swept(strict=False)
