"""The blocks of docs/component.md run unchanged, with the example apps' model, data and loss."""

import importlib
import sys
import tomllib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.clientapp import ClientApp
from packaging.requirements import Requirement

from link.polled import PolledGrid
from tests.component_grid import AppGrid
from tests.docs.blocks import ROOT, blocks_of

PAGE = "docs/component.md"
CLIENTS, ATTACKERS = 10, 3


def block(part: str) -> str:
    """Return the only block of the page that contains this."""
    (found,) = [block.text for block in blocks_of(PAGE) if part in block.text]
    return found


def run(text: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run a block of the page with these names defined; return all names defined afterwards."""
    exec(compile(text, PAGE, "exec"), names)  # noqa: S102  # our own page
    return names


def grid_of(app: ClientApp) -> PolledGrid:
    grid = AppGrid(dict.fromkeys(range(100, 100 + CLIENTS), app))
    for node in grid.nodes.values():
        node.context.run_config.update({"clients": CLIENTS, "attackers": ATTACKERS})
    return PolledGrid(grid)


@pytest.fixture
def example(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """A module of an example app, ``FOLDER/PACKAGE.MODULE``."""
    folder, _, name = request.param.partition("/")
    sys.path.insert(0, str(ROOT / "examples" / folder))
    yield importlib.import_module(name)
    sys.path.pop(0)
    for module in [module for module in sys.modules if module.partition(".")[0] == name.partition(".")[0]]:
        del sys.modules[module]


@pytest.mark.parametrize("example", ["flower_app/digits_app.task"], indirect=True, ids=["digits"])
def test_two_lines_make_an_app_robust(example: ModuleType) -> None:
    app = run(block("mods=[robust_deltas_mod]"), {"ClientApp": ClientApp})["app"]
    app.train()(importlib.import_module("digits_app.client_app").fit)

    def measure(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": example.accuracy(example.load_record(example.new_model(), arrays))})

    names = {
        "grid": grid_of(app),
        "arrays": example.to_record(example.new_model()),
        "config": ConfigRecord({"lr": 0.02, "local-epochs": 2}),
        "measure": measure,
    }
    result = run(block("RobustFedAvg(clients=10"), names)["result"]
    assert result.evaluate_metrics_serverapp[20]["accuracy"] > 0.85  # 0.93 or so; the app draws without a seed


@pytest.mark.parametrize("example", ["own_strategy/marina_app.loss"], indirect=True, ids=["logistic"])
def test_a_method_and_a_loss_of_ones_own(example: ModuleType) -> None:
    method = run(block("method = ByzVRMarinaPP("), {})["method"]
    whole, everybody = example.Loss(*example.data()), ClientApp()
    trains = run(block("return answer(message, context, method, loss)"), {"app": ClientApp(), "method": method})

    @everybody.train()
    def train(message: Message, context: Context) -> Message:
        """Give the page's function the loss of this node."""
        seat = int(context.node_config["partition-id"])
        kind = example.Flipped if seat >= CLIENTS - ATTACKERS else example.Loss
        trains["loss"] = kind.of_client(seat, CLIENTS)
        answer: Message = trains["train"](message, context)
        return answer

    def measure(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"loss": whole.value(arrays["x"].numpy())})

    arrays = ArrayRecord({"x": Array(example.np.zeros(example.DIM))})
    names = {"method": method, "grid": grid_of(everybody), "arrays": arrays, "measure": measure}
    result = run(block("strategy = AppStrategy("), names)["result"]
    assert result.evaluate_metrics_serverapp[0]["loss"] > 0.69
    assert result.evaluate_metrics_serverapp[100]["loss"] < 0.2


def test_the_apps_name_one_dependency() -> None:
    shown = tomllib.loads(block("fab-include"))
    breakwater, _ = shown["project"]["dependencies"]
    for app in ("flower_app", "pytorch_app", "own_strategy"):
        project = tomllib.loads((ROOT / "examples" / app / "pyproject.toml").read_text(encoding="utf-8"))
        assert project["project"]["dependencies"][0] == breakwater
        (package,) = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
        ours = [pattern.replace("my_app", package) for pattern in shown["tool"]["flwr"]["app"]["fab-include"]]
        assert project["tool"]["flwr"]["app"]["fab-include"] == ours
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert Requirement(breakwater).specifier.contains(version)
