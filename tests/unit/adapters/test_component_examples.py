"""The example apps as they stand in examples/, with ClientApps and ServerApp in this process."""

import importlib
import inspect
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from adapters.app_strategy import AppStrategy
from adapters.federated_averaging import RobustFedAvg
from link.polled import PolledGrid
from strategies.aggregators import CoordinateMedian
from strategies.compressors import Identity
from strategies.strategy import NoReplyCountsError
from tests.component_grid import AppGrid

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
GUIDE = (ROOT / "docs" / "component.md").read_text(encoding="utf-8")


class Example:
    """One of the apps."""

    def __init__(self, name: str, package: str) -> None:
        sys.path.insert(0, str(EXAMPLES / name))
        self._package = package
        with (EXAMPLES / name / "pyproject.toml").open("rb") as file:
            self.defaults: dict[str, Any] = tomllib.load(file)["tool"]["flwr"]["app"]["config"]
        self.client: ClientApp = importlib.import_module(f"{package}.client_app").app
        self.server = importlib.import_module(f"{package}.server_app").app

    def run(self, out: Path, **config: Any) -> dict[str, Any]:
        """Run it as its pyproject.toml says, but for some settings; return what it wrote."""
        settings = {**self.defaults, "out": str(out), **{key.replace("_", "-"): v for key, v in config.items()}}
        grid = AppGrid({100 + i: self.client for i in range(settings["clients"])})
        for node in grid.nodes.values():
            node.context.run_config.update(settings)
        self.server(PolledGrid(grid), Context(1, 1, {}, RecordDict(), settings))
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        return summary

    def close(self) -> None:
        """Take it out of this process again."""
        sys.path.pop(0)
        for module in [module for module in sys.modules if module.partition(".")[0] == self._package]:
            del sys.modules[module]


def opened(name: str, package: str) -> Iterator[Example]:
    example = Example(name, package)
    yield example
    example.close()


@pytest.fixture
def digits() -> Iterator[Example]:
    yield from opened("flower_app", "digits_app")


@pytest.fixture
def network() -> Iterator[Example]:
    yield from opened("pytorch_app", "pytorch_digits")


@pytest.fixture
def marina() -> Iterator[Example]:
    yield from opened("own_strategy", "marina_app")


def test_the_two_lines_make_the_difference(digits: Example, tmp_path: Path) -> None:
    robust = digits.run(tmp_path / "robust")["accuracy"]
    assert len(robust) == digits.defaults["rounds"] + 1
    assert robust[-1] > 0.94
    assert (tmp_path / "robust" / "model.npz").exists()
    assert digits.run(tmp_path / "naive", robust=False)["accuracy"][-1] < 0.2
    assert digits.run(tmp_path / "calm", robust=False, attackers=0)["accuracy"][-1] > 0.9  # Flower's sampling is random


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_two_lines_in_flowers_quickstart_with_pytorch(network: Example, tmp_path: Path) -> None:
    robust = network.run(tmp_path / "robust")
    assert robust["accuracy"][-1] > 0.8
    assert 0.8 < robust["clients"][-1] <= 1  # three of ten claim a billion; the median of the clients does not
    assert network.run(tmp_path / "naive", robust=False, num_server_rounds=5)["accuracy"][-1] < 0.2
    import torch

    model = importlib.import_module("pytorch_digits.task").Net()
    model.load_state_dict(torch.load(tmp_path / "robust" / "final_model.pt"))


def test_without_the_second_line_the_server_says_which_it_is(digits: Example, tmp_path: Path) -> None:
    bare = ClientApp()
    bare.train()(importlib.import_module("digits_app.client_app").fit)
    digits.client = bare
    with pytest.raises(NoReplyCountsError, match=r"is breakwater.robust_deltas_mod on its ClientApp"):
        digits.run(tmp_path)


def test_a_strategy_and_a_loss_of_ones_own(marina: Example, tmp_path: Path) -> None:
    attacked = marina.run(tmp_path / "attacked")["loss"]
    calm = marina.run(tmp_path / "calm", attackers=0)["loss"]
    assert attacked[0] == pytest.approx(0.693147)
    assert calm[-1] < 0.15
    assert attacked[-1] < 1.2 * calm[-1]


def test_the_guide_shows_code_that_is_there() -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        compile(block, "docs/component.md", "exec")
        for line in re.findall(r"^from link.*", block, re.MULTILINE):
            exec(line, {})  # noqa: S102  # our own page


def test_the_guide_knows_the_arguments_and_their_defaults() -> None:
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| +([^|]*?) *\|", GUIDE, re.MULTILINE)
    told = {name: default for names, default in rows for name in re.findall(r"\w+", names)}
    parameters = {**inspect.signature(AppStrategy).parameters, **inspect.signature(RobustFedAvg).parameters}
    for name, parameter in parameters.items():
        if name in ("method", "options", "arrayrecord_key", "configrecord_key", "on_round"):
            continue  # its own, or passed on, or as in FedAvg; for those who read the code
        default = told.pop(name).strip("`")
        if parameter.default is inspect.Parameter.empty:
            assert default == ""
        elif isinstance(parameter.default, str):
            assert default == parameter.default
        elif parameter.default is not None:
            assert float(default) == parameter.default
    assert not told
    strategy = RobustFedAvg(5, 2)
    assert strategy.min_available_nodes == 3
    assert strategy.compressor == Identity()
    assert strategy.method.aggregator == CoordinateMedian()
