"""The ServerApp on a Grid of Flower's, whose nodes run the ClientApp: the same model to the last bit."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict

from client.app import app as client_app
from examples.plain_loop import trajectory
from experiment.opened import open_experiment
from foundation.errors import ConfigError, Silent
from link import flwr_compat
from server.app import app
from server.run_folder.reader import read_model, read_rounds
from strategies.strategy import NoClientsError
from tests.local_grid import FIRST_NODE, LocalGrid
from tests.packages import ROOT
from tests.saved import x_of

TEXT = """
[federation]
clients = 4
byzantine = 1
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "byz-vr-marina-pp"
rounds = 6
gamma = 0.2
p = 0.3
cohort = 2
batch = 8
alpha = 2.0
[attack]
kind = "ipm"
"""


def serve(config: Path, nodes: int = 4, **run_config: str) -> None:
    """Run the ServerApp over nodes that run the ClientApp, the last of them an attacker."""
    named: dict[str, str | float | bool] = {"config": str(config), "attackers": "last"}
    contexts = [Context(1, FIRST_NODE + i, {"partition-id": i}, RecordDict(), named) for i in range(nodes)]

    def answer(worker: int, message: Message) -> Iterator[Message]:
        try:
            yield client_app(message, contexts[worker])
        except Silent as error:
            yield Message(Error(flwr_compat.APP_RAISED, str(error)), reply_to=message)

    grid = LocalGrid(nodes, answer)
    app(grid, Context(grid.run_id, 1, {}, RecordDict(), {**named, **run_config}))


def test_the_server_app_runs_on_a_foreign_grid_to_the_same_model(tmp_path: Path) -> None:
    out, config = tmp_path / "run", tmp_path / "config.toml"
    config.write_text(TEXT, encoding="utf-8")
    serve(config, out=str(out))
    *_, x = trajectory(open_experiment(TEXT, None, None))
    assert np.array_equal(x_of(out), x)
    assert json.loads((out / "summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("attack", ['kind = "ipm"', 'kind = "optimal-alie"\nview = "omniscient"'])
def test_weights_by_seat_give_the_same_model_on_a_foreign_grid(tmp_path: Path, attack: str) -> None:
    text = TEXT.replace("byzantine = 1", "byzantine = 1\nweights = [3, 4, 2, 3]").replace('kind = "ipm"', attack)
    out, config = tmp_path / "run", tmp_path / "config.toml"
    config.write_text(text, encoding="utf-8")
    serve(config, out=str(out))
    *_, x = trajectory(open_experiment(text, None, None))
    *_, unweighted = trajectory(open_experiment(TEXT.replace('kind = "ipm"', attack), None, None))
    assert np.array_equal(x_of(out), x)
    assert not np.array_equal(x_of(out), unweighted)


def test_nodes_have_no_names_to_weigh(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    weights = "byzantine = 1\nweights = { ada = 3, bob = 4, cy = 2, di = 3 }"
    config.write_text(TEXT.replace("byzantine = 1", weights), encoding="utf-8")
    with pytest.raises(ConfigError, match="weights by name: nodes of a Flower run have none; give a list by seat"):
        serve(config, out=str(tmp_path / "run"))


def test_a_run_on_a_foreign_grid_goes_on_for_more_rounds_to_the_same_model(tmp_path: Path) -> None:
    out, config = tmp_path / "run", tmp_path / "config.toml"
    config.write_text(TEXT.replace("rounds = 6", "rounds = 4"), encoding="utf-8")
    serve(config, out=str(out))
    config.write_text(TEXT, encoding="utf-8")
    serve(config, resume=str(out))
    *_, x = trajectory(open_experiment(TEXT, None, None))
    assert np.array_equal(x_of(out), x)
    assert [record.round for record in read_rounds(out)] == [1, 2, 3, 4, 5, 6]
    assert json.loads((out / "summary.json").read_text())["rounds"] == 6


def test_a_run_that_nobody_comes_back_to_keeps_the_names_in_its_model(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    out, config = tmp_path / "run", tmp_path / "config.toml"
    task = f'kind = "custom"\npath = "{ROOT / "examples" / "my_task.py"}:TwoMoons"'
    text = TEXT.replace('kind = "digits"\nmodel = "softmax"', task).replace(
        "byzantine = 1", "byzantine = 1\njoin_timeout_s = 1"
    )
    config.write_text(text, encoding="utf-8")
    serve(config, out=str(out))
    before = (out / "model.safetensors").read_bytes()
    assert read_model(out).tensors
    config.write_text(text.replace("rounds = 6", "rounds = 9"), encoding="utf-8")
    with pytest.raises(NoClientsError):
        serve(config, nodes=0, resume=str(out))
    assert (out / "model.safetensors").read_bytes() == before
