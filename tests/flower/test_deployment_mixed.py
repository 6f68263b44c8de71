"""The app on a Flower deployment with the newest SuperLink and the oldest SuperNodes, over gRPC."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.flower.conftest import CONFIG
from tests.flower.environments import NEWEST, OLDEST
from tests.flower.harness import Flower
from tests.flower.ways import MINUTES_S, Way, deployment, runs_over_the_link, runs_through_superlink
from tests.integration.processes import Processes, rounds_of

pytestmark = [pytest.mark.flower, pytest.mark.slow]

WAY = Way(NEWEST, 4, nodes=OLDEST)


@pytest.fixture(scope="module")
def flower(
    processes: Processes, installed: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Flower]:
    yield from deployment(WAY, processes, installed, tmp_path_factory.mktemp("flower"))


def test_the_run_over_the_link_is_that_of_the_live_link(
    flower: Flower, app: Path, live: Callable[..., Path], tmp_path: Path
) -> None:
    runs_over_the_link(flower, app, live, tmp_path / "run")


def test_the_run_through_superlink_and_supernodes_is_that_of_the_live_link(
    flower: Flower, app: Path, live: Callable[..., Path], tmp_path: Path
) -> None:
    runs_through_superlink(flower, WAY, app, live, tmp_path / "run")


def test_wrong_replies_do_not_stop_a_run(flower: Flower, app: Path, tmp_path: Path) -> None:
    node = flower.nodes[3]
    node.send(signal.SIGTERM)
    node.wait()
    flower.node(3, {"attack": "wire", "set": "attack.fault=wrong-shape"})
    changes = ("strategy.rounds=2", "strategy.p=1", "federation.seed=6")
    run = flower.run(app, tmp_path / "run", config=CONFIG, set=" ".join(changes))
    assert run.wait(MINUTES_S) == "finished:completed", run.log()
    for line in rounds_of(run.out):
        assert line["accepted"] == [0, 1, 2]
        assert [entry["reason"].partition(":")[0] for entry in line["rejected"]] == ["wrong shape"]
