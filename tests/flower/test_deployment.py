"""The app on a Flower deployment where all is as Flower starts it: the oldest Flower, over gRPC."""

from pathlib import Path
from typing import Any

import pytest

from tests.flower.conftest import CONFIG
from tests.flower.environments import OLDEST
from tests.flower.harness import Flower, Way
from tests.flower.ways import (  # noqa: F401  # two are tests, which are this file's too
    MINUTES_S,
    SMALL,
    is_the_rehearsal,
    test_the_run_over_the_link_is_that_of_the_live_link,
    test_the_run_through_superlink_and_supernodes_is_that_of_the_live_link,
)
from tests.integration.processes import free_address, rounds_of, summary_of, until
from tests.unit.server.monitor.test_exporters import scalars, scraped

pytestmark = [pytest.mark.flower, pytest.mark.slow]

WAY = Way(OLDEST, 3, stock=True)


def test_nodes_with_data_of_their_own_give_the_model_of_a_rehearsal(flower: Flower, app: Path, tmp_path: Path) -> None:
    is_the_rehearsal(flower, app, tmp_path, link=free_address())


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
