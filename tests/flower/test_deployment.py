"""The app on a Flower deployment where all is as Flower starts it: the oldest Flower, over gRPC."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import breakwater as bw
from tests.flower.conftest import CONFIG
from tests.flower.environments import OLDEST
from tests.flower.harness import Flower, Way
from tests.flower.ways import (  # noqa: F401  # two are tests, which are this file's too
    MINUTES_S,
    SMALL,
    test_the_run_over_the_link_is_that_of_the_live_link,
    test_the_run_through_superlink_and_supernodes_is_that_of_the_live_link,
)
from tests.integration.processes import free_address, rounds_of, summary_of, until
from tests.saved import x_of
from tests.unit.server.monitor.test_exporters import scalars, scraped

pytestmark = [pytest.mark.flower, pytest.mark.slow]

WAY = Way(OLDEST, 3, stock=True)


STUDY = """
[federation]
clients = 4
byzantine = 1
seed = 5
start_with = 3
[task]
kind = "table"
partition = "own"
file = "points.csv"
target = "inside"
classes = ["no", "yes"]
numeric = ["a", "b"]
missing = "refuse"
standardise = "none"
[strategy]
kind = "byz-vr-marina-pp"
rounds = 2
gamma = 0.5
p = 0.5
cohort = 4
batch = 8
clip = false
[aggregator]
kind = "cm"
[evaluation]
every = 2
"""


def parties(folder: Path) -> Path:
    """Write the study, and a folder of data for each of its four parties; return the study's path."""
    study, rng = folder / "study.toml", np.random.default_rng(0)
    study.write_text(STUDY, encoding="utf-8")
    for worker in range(4):
        place = folder / "parties" / f"p{worker}"
        place.mkdir(parents=True)
        rows = [f"{a},{b},{'yes' if a > b else 'no'}" for a, b in rng.normal(size=(30 + worker, 2))]
        (place / "points.csv").write_text("\n".join(["a,b,inside", *rows]), encoding="utf-8")
    return study


@pytest.mark.parametrize("over_link", [True, False])
def test_nodes_with_data_of_their_own_give_the_model_of_a_rehearsal(
    flower: Flower, app: Path, tmp_path: Path, *, over_link: bool
) -> None:
    """Node 3 is to attack with a view of data that it has not: it cannot take part, and is silent in the rehearsal."""
    study = parties(tmp_path)
    settings: dict[str, Any] = {"link": free_address()} if over_link else {}
    run = flower.run(app, tmp_path / "run", config=str(study), data=str(tmp_path / "parties"), **settings)
    assert run.wait(MINUTES_S) == "finished:completed", run.log()
    silent: dict[str, Any] = {"overrides": {"attack.kind": "silence"}, "processes": False, "quiet": True}
    bw.run(study, data=tmp_path / "parties", out=tmp_path / "rehearsal", **silent)
    summary, expected = (summary_of(tmp_path / name) for name in ("run", "rehearsal"))
    assert x_of(run.out).tobytes() == x_of(tmp_path / "rehearsal").tobytes()
    assert summary["measured_by"] == expected["measured_by"] == "clients"
    assert len(summary["claims"]["clients"]) == 3
    assert "yes" not in "".join(path.read_text(encoding="utf-8") for path in run.out.glob("*.json*"))


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
