"""The example apps under real Flower: their pyproject.toml names ``breakwater``, and a wheel of this checkout is it.

On the machines of the deployment the wheel is installed; for the simulation Flower itself installs it, with all that
the apps name.

Ray takes half a minute of a core to start, and starts for each run: one of the apps runs in simulation.
``tests/unit/adapters/test_component_examples.py`` runs both in one process, for more rounds.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flower.environments import NEWEST, OLDEST
from tests.flower.harness import SETTINGS, Flower
from tests.integration.processes import ROOT, Processes
from tests.wheel.building import built, uv

pytestmark = [pytest.mark.flower, pytest.mark.slow]

NODES = 3
SMALL = {"clients": NODES, "byzantine": 1, "attackers": 1}
"""A SuperNode starts a process for every message, so there are few."""
MINUTES_S = 900.0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The apps, and one whose user forgot the mod."""
    folder, apps = tmp_path_factory.mktemp("apps"), {}
    for name in ("flower_app", "own_strategy"):
        apps[name] = folder / name.replace("_", "-")
        shutil.copytree(ROOT / "examples" / name, apps[name], ignore=shutil.ignore_patterns("__pycache__"))
    apps["forgotten"] = folder / "forgotten"
    shutil.copytree(apps["flower_app"], apps["forgotten"])
    client = apps["forgotten"] / "digits_app" / "client_app.py"
    line = "app = ClientApp(mods=[robust_deltas_mod])  # was: ClientApp()"
    text = client.read_text(encoding="utf-8")
    assert text.count(line) == 1
    client.write_text(text.replace(line, "app = ClientApp()"), encoding="utf-8")
    return apps


@pytest.fixture(scope="module")
def deployment(
    processes: Processes, installed: Callable[[str], str], wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Flower]:
    # Beside Flower and not into it: its environment is shared with tests of the bundle.
    place, folder = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("deployment")
    uv("pip", "install", "--no-deps", "--target", place, wheel)
    made = Flower(processes, installed(OLDEST), folder, env={**SETTINGS, "PYTHONPATH": str(place)})
    try:
        made.ready()
        for worker in range(NODES):
            made.node(worker)
        made.online()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def simulation(
    processes: Processes, installed: Callable[[str], str], wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Flower]:
    installs = {"FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "0", "UV_FIND_LINKS": str(wheel.parent)}
    made = Flower(processes, installed(NEWEST), tmp_path_factory.mktemp("simulation"), simulation=True, env=installs)
    try:
        made.ready()
        yield made
    finally:
        made.close()


def ended(flower: Flower, app: Path, out: Path, federation: dict[str, object], **config: object) -> tuple[str, str]:
    """Run an app to its end; return Flower's word for how it ended, and what it said."""
    run = flower.run(app, out, federation=federation, **config)
    return run.wait(MINUTES_S), run.log()


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return found


def test_the_apps_on_a_deployment(deployment: Flower, bundles: dict[str, Path], tmp_path: Path) -> None:
    status, said = ended(deployment, bundles["flower_app"], tmp_path / "a", {}, **SMALL, rounds=2, fraction_train=1.0)
    assert status == "finished:completed", said
    assert "aggregate_train: Received 3 results and 0 failures" in said
    before, *_, after = summary(tmp_path / "a")["accuracy"]
    assert before < 0.2 < 0.6 < after

    status, said = ended(deployment, bundles["own_strategy"], tmp_path / "b", {}, **SMALL, rounds=2, cohort=3)
    assert status == "finished:completed", said
    assert "aggregate_train: Received 3 results and 0 failures" in said
    losses = summary(tmp_path / "b")["loss"]
    assert losses == sorted(losses, reverse=True)


def test_an_app_without_the_mod_ends_with_the_reason(
    deployment: Flower, bundles: dict[str, Path], tmp_path: Path
) -> None:
    status, said = ended(deployment, bundles["forgotten"], tmp_path / "a", {}, **SMALL)
    assert status == "finished:failed", said
    assert "no reply has counted yet, and 3 clients replied, of which 1 may be Byzantine" in said
    assert "is breakwater.robust_deltas_mod on its ClientApp?" in said


def test_an_app_in_simulation(simulation: Flower, bundles: dict[str, Path], tmp_path: Path) -> None:
    nodes: dict[str, object] = {"num-supernodes": 10, "client-resources-num-cpus": 1}
    status, said = ended(simulation, bundles["flower_app"], tmp_path / "a", nodes)
    assert status == "finished:completed", said
    assert summary(tmp_path / "a")["accuracy"][-1] > 0.9
