"""The blocks of docs/component.md run unchanged, with the example apps' model, data and loss."""

import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.clientapp import ClientApp

from link.polled import PolledGrid
from strategies.aggregators import CoordinateMedian
from strategies.byz_vr_marina_pp import ByzVRMarinaPP
from strategies.compressors import RandK
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
        return MetricRecord({"accuracy": example.accuracy(example.from_record(arrays))})

    names = {
        "grid": grid_of(app),
        "arrays": example.to_record(example.new_model()),
        "config": ConfigRecord({"lr": 0.5, "local-steps": 10}),
        "measure": measure,
    }
    result = run(block("RobustFedAvg(clients=10"), names)["result"]
    assert result.evaluate_metrics_serverapp[20]["accuracy"] > 0.85  # 0.93 or so; the app draws without a seed


@pytest.mark.parametrize("example", ["own_strategy/marina_app.loss"], indirect=True, ids=["logistic"])
def test_a_method_and_a_loss_of_ones_own(example: ModuleType) -> None:
    known: dict[str, Any] = {"ByzVRMarinaPP": ByzVRMarinaPP, "CoordinateMedian": CoordinateMedian, "RandK": RandK}
    method = run(block("method = ByzVRMarinaPP("), known)["method"]
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


def test_the_three_folders_make_an_app_complete(tmp_path: Path) -> None:
    (tmp_path / "my-app" / "my_app").mkdir(parents=True)
    (tmp_path / "my-app" / "my_app" / "__init__.py").touch()
    for name in ("adapters", "strategies", "link", "foundation"):
        (tmp_path / name).symlink_to(ROOT / name)
    command = block("cp -r").replace("cp -r", "cp -rH")  # what is copied is links here
    subprocess.run(["/bin/sh", "-euc", command], cwd=tmp_path, check=True)
    patterns = tomllib.loads(block("fab-include"))["tool"]["flwr"]["app"]["fab-include"]
    bundle = tmp_path / "bundle"
    for path in (path for pattern in patterns for path in (tmp_path / "my-app").glob(pattern)):
        to = bundle / path.relative_to(tmp_path / "my-app")
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(path.read_bytes())
    wants = "import adapters.federated_averaging, adapters.mods, adapters.app_strategy, adapters.answers, my_app, link"
    code = f"import sys; sys.path.insert(0, {str(bundle)!r}); {wants}; print(link.__file__)"
    said = subprocess.run([sys.executable, "-c", code], cwd=bundle, capture_output=True, text=True, check=False)
    assert said.stdout.startswith(str(bundle)), said.stderr
