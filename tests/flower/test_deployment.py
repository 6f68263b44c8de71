"""The app on a Flower deployment where all is as Flower starts it: the oldest Flower, over gRPC."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flower.conftest import CONFIG
from tests.flower.environments import OLDEST
from tests.flower.harness import Flower
from tests.flower.ways import MINUTES_S, SMALL, Way, deployment, runs_over_the_link, runs_through_superlink
from tests.integration.processes import Processes, free_address, rounds_of, summary_of, until
from tests.unit.test_monitor import scalars, scraped

pytestmark = [pytest.mark.flower, pytest.mark.slow]

WAY = Way(OLDEST, 3, stock=True)


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


def test_a_run_is_watched_and_stopped_and_leaves_its_folder_and_its_nodes(
    flower: Flower, app: Path, tmp_path: Path
) -> None:
    changes = (*SMALL, "strategy.rounds=1000000")
    address = free_address()
    watched: dict[str, Any] = {"tensorboard": ".", "metrics_port": int(address.rpartition(":")[2])}
    run = flower.run(app, tmp_path / "run", config=CONFIG, set=" ".join(changes), link=free_address(), **watched)
    until(lambda: len(rounds_of(run.out)) >= 10, "ten rounds", MINUTES_S)
    samples = scraped(f"http://{address}/metrics")
    assert samples["breakwater_rounds_total"][()] >= 9  # a round is counted after it is written
    assert samples["breakwater_connected_clients"] == {(): 4.0}
    run.stop()
    until(lambda: (run.out / "summary.json").exists(), "a summary of the stopped run", MINUTES_S)
    assert run.status() == "finished:stopped"
    summary, rounds = summary_of(run.out), rounds_of(run.out)
    assert (summary["status"], summary["rounds"]) == ("interrupted", len(rounds))
    assert (run.out / "model.safetensors").exists()
    until(lambda: not flower.busy("flwr-serverapp"), "the end of the ServerApp, which closes its files", MINUTES_S)
    shown = scalars(run.out / "tensorboard")["round/bytes_up"]
    told = {line["round"]: line["bytes_up"] for line in rounds if line["round"] in shown}
    assert shown == pytest.approx(told)
    assert len(rounds) - 1 <= len(shown), "all but the round, perhaps, that the stop fell into"
    assert f"metrics for Prometheus on http://{address}/metrics" in run.log()
    until(lambda: not flower.busy("flwr-clientapp"), "nodes that are free again", MINUTES_S)
