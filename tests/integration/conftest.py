"""What the tests with real processes share: processes, reaped in any case, machines, a small federation's config."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.fork_server import Nursery
from tests.integration.machines import Machines
from tests.integration.processes import DIGITS, Processes


@pytest.fixture
def processes() -> Iterator[Processes]:
    with Processes() as started:
        yield started


@pytest.fixture(scope="session")
def _nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture
def forked(_nursery: Nursery) -> Iterator[Nursery]:
    """Processes whose breakwater commands are forks; not for `breakwater run`, which forks by itself."""
    yield _nursery
    _nursery.swept(strict=True)


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
