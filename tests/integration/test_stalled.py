"""Runs whose clients fail, with real processes: how they end, what they leave, and that they can go on."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.integration import failing_task
from tests.integration.processes import Processes, free_address, rounds_of, sets, summary_of
from tests.saved import x_of

pytestmark = pytest.mark.slow

EXPERIMENT = """
[federation]
clients = 5
byzantine = 1
seed = 1
join_timeout_s = 30.0
[task]
kind = "custom"
path = "failing_task.py:Failing"
options = { calls = 30 }
[strategy]
kind = "byz-vr-marina-pp"
rounds = 400
gamma = 0.02
p = 0.2
cohort = 4
batch = 8
alpha = 50.0
[aggregator]
kind = "cm"
[attack]
kind = "zero"
[evaluation]
every = 20
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    shutil.copy(failing_task.__file__, tmp_path)
    path = tmp_path / "exp.toml"
    path.write_text(EXPERIMENT, encoding="utf-8")
    return path


def test_a_run_whose_clients_all_fail_ends_as_stalled(processes: Processes, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = processes.breakwater("run", config, "--out", out, *sets("federation.join_timeout_s=3"))
    run.ends(1)
    summary, rounds = summary_of(out), rounds_of(out)
    assert summary["status"] == "stalled"
    since = summary["stall"]["since"]
    assert 25 <= since < summary["rounds"] == len(rounds) < 60
    assert since + 2 >= len(rounds), "it stepped along the old estimate at most twice"
    assert "error: RuntimeError: CUDA out of memory" in summary["stall"]["reasons"]
    problem = failing_task.Problem(5, 0, None, 0)
    model = x_of(out)
    assert problem.evaluate(np.array(model)).loss == pytest.approx(summary["loss"])
    assert summary["loss"] < summary["start"]["loss"]
    assert run.line(r"^stalled after \d+ rounds")
    assert run.line(r"stalled: nothing since round \d+ counted: .*CUDA out of memory")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Stalled after round" in page
    assert "CUDA out of memory" in page
    processes.none_left()


def test_a_stalled_run_goes_on_when_its_clients_are_well_again(
    processes: Processes, config: Path, tmp_path: Path
) -> None:
    out, well, address = tmp_path / "run", tmp_path / "well", free_address()
    text = EXPERIMENT.replace("calls = 30", f'calls = 30, until = "{well}"').replace("rounds = 400", "rounds = 60")
    config.write_text(text, encoding="utf-8")
    processes.breakwater("run", config, "--out", out, *sets("federation.join_timeout_s=3")).ends(1)
    stalled = summary_of(out)
    assert stalled["status"] == "stalled"
    well.touch()
    server = processes.breakwater(
        "server", config, "--resume", out, "--listen", address, *sets("federation.join_timeout_s=60")
    )
    server.line(f"going on after round {stalled['rounds']}")
    clients = [
        processes.breakwater("client", "--connect", address, "--name", name, "--config", config, *attack)
        for name, attack in [*((f"client-{i}", ()) for i in range(4)), ("byzantine", ("--attack", "zero"))]
    ]
    server.ends(0)
    for client in clients:
        client.ends(0)
    assert summary_of(out)["status"] == "finished"
    assert [line["round"] for line in rounds_of(out)] == list(range(1, 61))


def test_a_sweep_tells_runs_that_stalled_and_attacks_that_failed(
    processes: Processes, config: Path, tmp_path: Path
) -> None:
    sweep, out = tmp_path / "sweep.toml", tmp_path / "swept"
    sweep.write_text(
        """
title = "Failures"
base = "exp.toml"
set = ["strategy.rounds=40", "evaluation.every=10"]
seeds = [1]
[axes.case]
"none" = "task.options={calls=1000}"
"stalls" = "task.options={calls=10}"
"no attack" = ["task.options={flips=5}", "attack.kind=lf"]
""",
        encoding="utf-8",
    )
    run = processes.breakwater("sweep", sweep, "--out", out, "--in-process")
    run.ends(1)
    with (out / "table.csv").open(encoding="utf-8", newline="") as file:
        table = {row["case"]: row for row in csv.DictReader(file)}
    assert {case: row["status"] for case, row in table.items()} == {
        "none": "finished", "stalls": "stalled", "no attack": "finished",
    }  # fmt: skip
    assert "CUDA out of memory" in table["stalls"]["reason"]
    assert table["stalls"]["loss"] == "", "no ordinary row"
    assert table["no attack"]["warning"].startswith("the attack failed in ")
    assert not table["none"]["warning"]
    page = (out / "table.md").read_text(encoding="utf-8")
    assert "1, 1 stalled" in page
    assert "1, the attack failed in 1" in page
    folder = out / table["no attack"]["folder"]
    assert summary_of(folder)["attack_failure"]["reason"] == "RuntimeError: CUDA out of memory"
    shown = processes.breakwater("report", folder)
    shown.ends(0)
    assert "The attack failed" in (folder / "report.html").read_text(encoding="utf-8")
