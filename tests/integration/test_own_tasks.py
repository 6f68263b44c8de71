"""Custom tasks in real processes: one without an accuracy runs to the end, one that would mislead is refused."""

import json
from pathlib import Path

import pytest

from deploy.inprocess import run_in_process
from deploy.local import LocalOptions
from experiment.config import load
from server.monitor.exporters import Monitoring
from tests.integration.processes import Processes, free_address, rounds_of, summary_of

pytest.importorskip("torch")

pytestmark = pytest.mark.slow

CONFIG = """
[federation]
clients = 3
seed = 1
[task]
kind = "custom"
path = "own.py:Line"
[strategy]
kind = "robust-sgd"
rounds = 6
gamma = 0.1
batch = 8
[evaluation]
every = 2
"""
TASK = """
import random
from pathlib import Path
import torch
from torch import nn
class Line:
    def model(self):
        return nn.Linear(2, 1)
    def train_data(self):
        x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
        return x, x @ torch.tensor([[1.0], [-2.0]])
    def loss(self, output, target):
        return nn.functional.mse_loss(output, target)
class Moody(nn.Module):
    # draws from Python where a file says so: the task is the same everywhere, and the machine is not
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(2, 1)
    def forward(self, x):
        noise = random.random() if Path(__file__).with_name("moody").exists() else 0.0
        return self.line(x) + noise
class Machine(Line):
    def model(self):
        return Moody()
class Unseeded(Line):
    def train_data(self):
        return torch.rand(60, 2), torch.rand(60, 1)
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(TASK)
    (tmp_path / "line.toml").write_text(CONFIG)
    return tmp_path / "line.toml"


def test_a_regression_shows_its_loss_everywhere_and_nothing_else(
    processes: Processes, config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run = processes.breakwater("run", config, "--out", out, "--tensorboard")
    last = run.line("finished after 6 rounds.*")[0]
    run.ends(0)
    summary, rounds = summary_of(out), rounds_of(out)
    assert summary["accuracy"] is None
    assert summary["loss"] < summary["start"]["loss"]
    assert [line["round"] for line in rounds if "loss" in line] == [2, 4, 6]
    assert not any("accuracy" in line for line in (*rounds, summary["start"]))
    assert "loss" in last
    page = (out / "report.html").read_text(encoding="utf-8")
    for shown in (last, page):
        assert "accuracy" not in shown
        assert "nan %" not in shown
    assert (out / "curve.png").stat().st_size > 0

    alone = tmp_path / "alone"
    options = LocalOptions(config=load(config), out=alone, config_dir=tmp_path, monitoring=Monitoring(quiet=True))
    run_in_process(options)
    assert json.loads((alone / "summary.json").read_text())["loss"] == summary["loss"]


def test_a_task_that_would_mislead_is_refused_before_anybody_joins(
    processes: Processes, config: Path, tmp_path: Path
) -> None:
    changes = ("--set", "task.path=own.py:Unseeded")
    address = free_address()
    for command in (
        ("check", config),
        ("run", config, "--out", tmp_path / "run"),
        ("server", config, "--listen", address, "--out", tmp_path / "server"),
    ):
        process = processes.breakwater(*command, *changes)
        process.line(r"train_data\(\) gave other inputs at its second call")
        process.ends(2)
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_client_refuses_a_task_that_would_mislead_on_its_machine(
    processes: Processes, config: Path, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    for folder in (tmp_path, there):
        (folder / "own.py").write_text(TASK)
        (folder / "line.toml").write_text(CONFIG.replace("own.py:Line", "own.py:Machine"))
    (there / "moody").touch()
    address = free_address()
    server = processes.breakwater("server", config, "--listen", address, "--out", tmp_path / "run")
    server.line("listening on")
    client = processes.breakwater("client", "--connect", address, "--name", "alice", "--config", there / "line.toml")
    client.line(r"own forward \(Moody\) gives another output for the same inputs at its second call")
    client.ends(2)
    server.ctrl_c()
    server.ends(130)
