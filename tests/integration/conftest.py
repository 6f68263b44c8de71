"""What the tests with real processes share: processes, reaped in any case, machines, a small federation's config."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.fork_server import ForkServer
from tests.integration.machines import Machines
from tests.integration.processes import DIGITS, Processes


@pytest.fixture
def processes() -> Iterator[Processes]:
    with Processes() as started:
        yield started


@pytest.fixture(scope="session")
def _fork_server() -> Iterator[ForkServer]:
    with ForkServer() as fork_server:
        yield fork_server


@pytest.fixture
def forked(_fork_server: ForkServer) -> Iterator[ForkServer]:
    """Processes whose breakwater commands are forks; not for `breakwater run`, which forks by itself."""
    yield _fork_server
    _fork_server.swept(strict=True)


@pytest.fixture
def machines(processes: Processes, tmp_path: Path) -> Iterator[Machines]:
    """A network of machines; the test is skipped where there can be none."""
    obstacle = Machines.impossible()
    if obstacle is not None:
        pytest.skip(obstacle)
    network = Machines(processes, tmp_path)
    yield network
    network.end()


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """The config file of a small federation."""
    path = tmp_path / "digits.toml"
    path.write_text(DIGITS, encoding="utf-8")
    return path
