"""The app in Flower's simulation (Ray): a hundred virtual clients by `flwr run`, with stock settings."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import breakwater as bw
from experiment.config import load
from experiment.opened import open_experiment
from link import codec
from tests.flower.environments import NEWEST
from tests.flower.harness import Flower
from tests.flower.ways import parties
from tests.integration.processes import ROOT, Processes, rounds_of, summary_of
from tests.local_grid import federation
from tests.saved import x_of

pytestmark = [pytest.mark.flower, pytest.mark.slow]

CONFIG = "deploy/configs/byz-dasha-page.toml"
"""An experiment whose workers keep state: here in `context.state`, as any actor may answer for any node."""
CHANGES = ("federation.clients=100", "federation.byzantine=0", "attack.kind=none", "strategy.rounds=4")
ACTORS = {"num-supernodes": 100, "client-resources-num-cpus": 1}
FIRST_S = 600.0
"""A bound for starting Ray, for the dependencies that Flower installs before, and for a few rounds."""


@pytest.fixture(scope="module")
def flower(
    processes: Processes, installed: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Flower]:
    """A simulation SuperLink that installs what the app's pyproject.toml names, as it does if it is told nothing."""
    folder = tmp_path_factory.mktemp("flower")
    stock = {"FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "0"}
    made = Flower(processes, installed(NEWEST), folder, simulation=True, env=stock)
    try:
        made.ready()
        yield made
    finally:
        made.close()


def test_a_hundred_virtual_clients_give_the_bits_of_one_process(flower: Flower, app: Path, tmp_path: Path) -> None:
    run = flower.run(app, tmp_path / "run", federation=ACTORS, config=CONFIG, set=" ".join(CHANGES))
    assert run.wait(FIRST_S) == "finished:completed", run.log()
    summary, rounds = summary_of(run.out), rounds_of(run.out)
    assert (summary["status"], summary["rounds"], summary["rejected"]) == ("finished", 4, {})
    assert all(line["accepted"] == line["cohort"] for line in rounds)

    experiment = open_experiment(load(ROOT / CONFIG, CHANGES).to_toml(), None, None)
    grid, strategy = federation(experiment)
    strategy.start(grid, codec.to_arrays(experiment.problem.initial()), 4)
    assert x_of(run.out).tobytes() == strategy.state.x.tobytes()


def test_virtual_clients_have_the_folders_of_their_partitions(flower: Flower, app: Path, tmp_path: Path) -> None:
    study, data = parties(tmp_path), tmp_path / "parties"
    run = flower.run(
        app, tmp_path / "run", federation={**ACTORS, "num-supernodes": 4}, config=str(study), data=str(data)
    )
    assert run.wait(FIRST_S) == "finished:completed", run.log()
    bw.run(study, data=data, out=tmp_path / "rehearsal", processes=False, quiet=True)
    assert x_of(run.out).tobytes() == x_of(tmp_path / "rehearsal").tobytes()


def test_another_apps_client_package_is_noticed(flower: Flower, app: Path, tmp_path: Path) -> None:
    """Actors of a shared SuperLink import from the folder that it was started in before they import from the app's."""
    for package in ("client", "experiment", "foundation", "link", "strategies", "tasks", "attacks", "deploy"):
        shutil.copytree(app / package, flower.folder / package)
    worker = flower.folder / "client" / "worker.py"
    worker.write_text(worker.read_text(encoding="utf-8") + "\n# another app\n", encoding="utf-8")
    changes, few = ("federation.clients=4", *CHANGES[1:]), {**ACTORS, "num-supernodes": 4}
    run = flower.run(app, tmp_path / "run", federation=few, config=CONFIG, set=" ".join(changes))
    assert run.wait(FIRST_S) == "finished:failed"
    assert "4 of 4 nodes: runs other code" in run.log()
    assert rounds_of(run.out) == []
