"""Sweeps that run, and that a federation in one process is the one of real processes: models, bytes, verdicts."""

import csv
import fcntl
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import _parser, main
from deploy.inprocess import names, run_in_process
from deploy.local import LocalOptions, run_local
from deploy.sweeps.experiment import load_plan
from deploy.sweeps.runner import SweepOptions
from deploy.sweeps.sweep import sweep
from experiment.config import Config, load
from foundation.errors import ConfigError
from server.monitor.exporters import Monitoring
from tests.docs.blocks import blocks_of, commands
from tests.integration.fork_server import ForkServer
from tests.integration.processes import DIGITS, ROOT, rounds_of, summary_of, until

pytestmark = pytest.mark.slow

CONFIGS = ROOT / "deploy" / "configs"
EXPERIMENTS = sorted((ROOT / "benchmarks" / "experiments").glob("*.toml"))
PAGE = "docs/experiments.md"
TIMES = {"round_s", "deadline_s"}
"""Keys of a round that are seconds."""


# --- one process is as good as many -----------------------------------------------------------------------------------


def options(config: Config, out: Path) -> LocalOptions:
    return LocalOptions(
        config=config, config_dir=CONFIGS, out=out, monitoring=Monitoring(quiet=True, pictures=False), silent=True
    )


def told(out: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in rounds_of(out)]


SAME = {
    "byz-vr-marina-pp, alie of an omniscient coalition, rand-k": (
        "heterogeneous",
        ("attack.kind=alie", "attack.view=omniscient", "attack.z=1.06"),
    ),
    "byz-vr-marina-pp, attackers that each draw for themselves": (
        "heterogeneous",
        ("attack.kind=fang", "attack.view=omniscient"),
    ),
    "rosdhb, with checkpoints that workers are told of": ("rosdhb", ("checkpoint.every=3",)),
    "byz-dasha-page, a reply of each that is not finite": ("byz-dasha-page", ("attack.kind=nan",)),
    "a torch model, whose file is a state dict": ("custom", ()),
    "garbage on the wire": ("robust-sgd", ("attack.kind=wire", 'attack.fault=["garbage", "truncated", "oversize"]')),
}


@pytest.mark.parametrize("case", SAME)
def test_a_run_in_one_process_writes_what_a_run_of_processes_writes(tmp_path: Path, case: str) -> None:
    name, changes = SAME[case]
    if name == "custom":
        pytest.importorskip("torch")
    config = load(CONFIGS / f"{name}.toml", ["strategy.rounds=8", "evaluation.every=4", "checkpoint.every=0", *changes])
    run_in_process(options(config, tmp_path / "one"))
    assert run_local(options(config, tmp_path / "many")) == 0
    assert told(tmp_path / "one") == told(tmp_path / "many")
    for file in ("config.toml", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "many" / file).read_bytes()
    one, many = (summary_of(tmp_path / run) for run in ("one", "many"))
    for key in ("status", "rounds", "loss", "bytes_up", "bytes_down", "rejected_by_client", "seed"):
        assert one[key] == many[key], key


def test_every_cohort_has_its_share_of_attackers_where_that_is_asked_for(tmp_path: Path) -> None:
    changes = [
        "strategy.rounds=40",
        "strategy.cohort=5",
        "attack.kind=shb",
        "evaluation.every=40",
        "checkpoint.every=0",
    ]
    cohorts = {}
    for membership in ("fixed", "per-cohort"):
        config = load(CONFIGS / "demo.toml", [*changes, f"attack.membership={membership}"])
        run_in_process(options(config, tmp_path / membership))
        rounds = [line["cohort"] for line in rounds_of(tmp_path / membership) if len(line["cohort"]) == 5]
        cohorts[membership] = {sum(worker >= 7 for worker in cohort) for cohort in rounds}
    assert cohorts["per-cohort"] == {2}  # 3 of 10 attack: 1.5 of 5, rounded
    assert len(cohorts["fixed"]) > 1


def test_the_clients_of_one_process_have_the_names_of_the_processes() -> None:
    assert names(3, 1) == ["client-0", "client-1", "byzantine"]
    assert names(12, 2)[:1] + names(12, 2)[9:] == ["client-00", "client-09", "byzantine-0", "byzantine-1"]


def test_a_silent_client_costs_one_process_no_time(tmp_path: Path) -> None:
    config = load(
        CONFIGS / "robust-sgd.toml", ["strategy.rounds=3", "attack.kind=silence", "federation.deadline_s=600"]
    )
    run_in_process(options(config, tmp_path / "run"))
    assert summary_of(tmp_path / "run")["wall_s"] < 600
    assert all(line["rejected"] for line in rounds_of(tmp_path / "run"))


def test_one_process_refuses_attackers_without_an_attack(tmp_path: Path) -> None:
    config = load(CONFIGS / "robust-sgd.toml", ["attack.kind=none"])
    with pytest.raises(ConfigError, match=r"without an \[attack\] section"):
        run_in_process(options(config, tmp_path / "run"))


# --- the page that tells of them --------------------------------------------------------------------------------------


def test_the_experiment_file_of_the_page_is_one(tmp_path: Path) -> None:
    (block,) = [block for block in blocks_of(PAGE) if block.language == "toml"]
    path = tmp_path / "experiment.toml"
    path.write_text(block.text.replace("../configs", str(CONFIGS)), encoding="utf-8")
    plan = load_plan(path)
    assert len(plan.cells()) == len(plan.tuning()) == 2 * 2 * 3
    assert len(load_plan(path, reduced=True).cells()) == 2 * 3


def test_the_commands_of_the_page_are_those_of_the_experiments_that_ship() -> None:
    typed = [line for block in blocks_of(PAGE) if block.language == "sh" for line in commands(block.text)]
    options = [_parser().parse_args(shlex.split(line)[1:]) for line in typed if "breakwater sweep" in line]
    assert sorted(ROOT / option.experiment for option in options) == EXPERIMENTS


# --- sweeps -----------------------------------------------------------------------------------------------------------

SWEEP = """
title = "Two rules"
base = "digits.toml"
set = ["federation.byzantine=1", "attack.kind=bf", "strategy.rounds=4", "evaluation.every=2"]
seeds = [1, 2]
[axes.rule]
cm = "aggregator.kind=cm"
mean = "aggregator.kind=mean"
[[figures]]
name = "loss"
y = "loss"
lines = "rule"
"""


def written(folder: Path, text: str) -> Path:
    (folder / "digits.toml").write_text(DIGITS, encoding="utf-8")
    path = folder / "experiment.toml"
    path.write_text(text, encoding="utf-8")
    return path


def table_of(out: Path) -> list[dict[str, str]]:
    with (out / "table.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    with ForkServer() as fork_server:
        yield fork_server


@pytest.fixture
def fork_server(forks: ForkServer) -> Iterator[ForkServer]:
    yield forks
    forks.swept(strict=True)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_reduced_form_of_every_experiment_runs(path: Path, tmp_path: Path) -> None:
    plan = load_plan(path, reduced=True)
    out = tmp_path / "sweep"
    assert sweep(SweepOptions(path=path, plan=plan, out=out, jobs=2, in_process=True, data=None)) == 0
    table = table_of(out)
    tuned = plan.file.tune.axis if plan.file.tune else None
    groups = {cell.without(tuned) if tuned else cell for cell in plan.cells()}
    assert len(table) == len(groups) * len(plan.file.seeds)
    assert {line["status"] for line in table} == {"finished"}
    assert all(0 < float(line["loss"]) < 10 and int(line["bytes_up"]) > 0 for line in table)
    for figure in plan.file.figures:
        assert (out / f"{figure.name}.png").read_bytes().startswith(b"\x89PNG")
    assert plan.file.title in (out / "table.md").read_text(encoding="utf-8")


def test_a_sweep_of_real_processes_ends_at_the_numbers_of_one_process(fork_server: ForkServer, tmp_path: Path) -> None:
    path = written(tmp_path, SWEEP.replace("seeds = [1, 2]", "seeds = [1]"))
    many = fork_server.breakwater("sweep", path, "--out", tmp_path / "many", "--jobs", "2")
    many.ends(0)
    assert many.said().count("finished") == 2
    plan = load_plan(path)
    assert sweep(SweepOptions(path=path, plan=plan, out=tmp_path / "one", jobs=1, in_process=True, data=None)) == 0
    unequal = {"seconds", "how"}
    one, other = (
        [{key: value for key, value in line.items() if key not in unequal} for line in table_of(tmp_path / out)]
        for out in ("one", "many")
    )
    assert one == other
    assert [line["how"] for line in table_of(tmp_path / "many")] == ["processes"] * 2


SHORT_AND_LONG = """
title = "A short run and a longer one"
base = "digits.toml"
seeds = [1]
[axes.rounds]
few = "strategy.rounds=4"
many = "strategy.rounds=700"
"""


def test_a_sweep_that_is_killed_or_interrupted_leaves_no_process_and_goes_on_where_it_was(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    path, out = written(tmp_path, SHORT_AND_LONG), tmp_path / "out"
    done, under_way = (out / "runs" / f"rounds-{name}" / "seed-1" for name in ("few", "many"))
    command = ("sweep", path, "--in-process", "--jobs", "1", "--out", out)

    killed = fork_server.breakwater(*command)
    killed.line(r"\[1/2\] rounds few, seed 1: finished")
    until(lambda: rounds_of(under_way), "a round of the second run")
    killed.send(signal.SIGKILL)
    killed.wait()
    until(lambda: not fork_server.living(), "the end of what it had started")
    written_at, half = (done / "metrics.jsonl").stat().st_mtime_ns, len(rounds_of(under_way))

    interrupted = fork_server.breakwater(*command)
    interrupted.line("runs: 2 runs, 1 done before; in process")
    until(lambda: 0 < len(rounds_of(under_way)) != half, "the second run anew")
    interrupted.ctrl_c()
    interrupted.ends(130)
    interrupted.line("interrupted; the same command continues")
    assert not fork_server.living()

    fork_server.breakwater(*command).ends(0)
    assert (done / "metrics.jsonl").stat().st_mtime_ns == written_at
    assert [(line["status"], line["rounds"]) for line in table_of(out)] == [("finished", "4"), ("finished", "700")]


def test_what_fails_or_diverges_is_a_row_and_the_others_are_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SWEEP.replace(
        'mean = "aggregator.kind=mean"',
        'wild = ["aggregator.kind=mean", "strategy.gamma=1e30"]\nlost = ["task.kind=logistic", "task.data=nowhere.gz"]',
    ).replace("[1, 2]", "[1]")
    path = written(tmp_path, text)
    plan = load_plan(path)
    out = tmp_path / "out"
    assert sweep(SweepOptions(path=path, plan=plan, out=out, jobs=3, in_process=True, data=None)) == 1
    states = {line["rule"]: (line["status"], line["loss"]) for line in table_of(out)}
    assert states["cm"][0] == "finished"
    assert states["wild"] == ("diverged", "inf")
    assert states["lost"] == ("failed", "")
    said = capsys.readouterr().out
    assert 'failed: rule lost, seed 1: [task] data file "nowhere.gz"' in said
    assert "\nFailed:\n" in (out / "table.md").read_text(encoding="utf-8")

    mended = text.replace('["task.kind=logistic", "task.data=nowhere.gz"]', '"aggregator.kind=rfa"')
    path.write_text(mended, encoding="utf-8")
    plan = load_plan(path)
    assert sweep(SweepOptions(path=path, plan=plan, out=out, jobs=1, in_process=True, data=None)) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].startswith(f"{path} has changed since the sweep in {out} began: ")
    assert "runs: 3 runs, 2 done before" in said


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, SWEEP)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.tex").write_text("", encoding="utf-8")
    assert main(["sweep", str(path), "--out", str(strange)]) == 2
    said = capsys.readouterr()
    assert said.err == f"breakwater: error: --out {strange}: is not empty and holds no sweep; choose another folder\n"
    assert said.out == ""


def test_two_sweeps_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = written(tmp_path, SWEEP), tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (out / "experiment.toml").write_text(SWEEP, encoding="utf-8")
        assert main(["sweep", str(path), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"breakwater: error: --out {out}: another sweep is running there\n"


def test_mistakes_in_an_experiment_file_end_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, SWEEP.replace("seeds", "sedes"))
    assert main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"breakwater: error: {path}: seeds: missing",
        f"breakwater: error: {path}: sedes: unknown key; did you mean seeds?",
    ]
    assert not (tmp_path / "out").exists()
