"""What the tests with real processes share: the processes, reaped in any case, and a small federation's config."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.processes import DIGITS, Processes


@pytest.fixture
def processes() -> Iterator[Processes]:
    with Processes() as started:
        yield started


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """The config file of a small federation."""
    path = tmp_path / "digits.toml"
    path.write_text(DIGITS, encoding="utf-8")
    return path
