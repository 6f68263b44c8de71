"""What the tests on Flower share: the app, Flower's environments, and what the live link makes of the same config."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.flower.environments import UnavailableError, environment
from tests.flower.harness import SETTINGS, Flower, Way, copy_checkout
from tests.flower.pages import typed
from tests.integration.processes import ROOT, Processes, sets

CONFIG = "deploy/configs/flower.toml"
"""The experiment that the bundle runs if it is told nothing else."""
ATTACK = typed("docs/flower.md", "flower-supernode", "alie")
"""The node config of the Byzantine SuperNode, worker 3, as the page has it."""


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout that commands of Flower may write into."""
    return copy_checkout(tmp_path_factory.mktemp("app"))


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with Processes() as started:
        yield started


@pytest.fixture(scope="session")
def installed() -> Callable[..., str]:
    """Make sure of a Flower version, ``bare`` or not; where it cannot be had, skip the test, fail it where CI runs."""

    def ensure(version: str, *, bare: bool = False) -> str:
        try:
            environment(version, bare=bare)
        except UnavailableError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"Flower {version} cannot be installed here: {error}")
        return version

    return ensure


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Run the bundle's experiment over the live link, with changes; return the run folder. Each is made once."""
    made: dict[tuple[str, ...], Path] = {}

    def run(*changes: str) -> Path:
        if changes not in made:
            made[changes] = tmp_path_factory.mktemp("live") / "run"
            with Processes() as processes:
                processes.breakwater("run", ROOT / CONFIG, "--out", made[changes], *sets(*changes)).ends(0)
        return made[changes]

    return run


@pytest.fixture(scope="module")
def way(request: pytest.FixtureRequest) -> Way:
    """Return the way that a file of tests is about."""
    found: Way = request.module.WAY
    return found


@pytest.fixture(scope="module")
def flower(
    way: Way, processes: Processes, installed: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Flower]:
    """A SuperLink and four SuperNodes that are online, worker 3 Byzantine."""
    installed(way.nodes or way.version)
    made = Flower(
        processes,
        installed(way.version),
        tmp_path_factory.mktemp("flower"),
        secure=way.secure,
        nodes=way.nodes,
        stock=way.stock,
        env={} if way.stock else SETTINGS,
    )
    try:
        made.ready()
        for worker in range(4):
            made.node(worker, ATTACK if worker == 3 else {})
        made.online()
        yield made
    finally:
        made.close()
