"""`breakwater run` with real processes: results, the run folder, and that nothing is ever left behind."""

import os
import re
import signal
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest

import breakwater as bw
from examples.plain_loop import trajectory
from experiment.config import load, parse
from experiment.opened import open_experiment
from tests.integration.fork_server import ForkServer
from tests.integration.processes import (
    ATTACKED,
    DIGITS,
    ROOT,
    SOON_S,
    Process,
    Processes,
    rounds_of,
    sets,
    summary_of,
    until,
)
from tests.saved import x_of

pytestmark = pytest.mark.slow

A9A = ROOT / "deploy" / "configs" / "a9a.toml"
PAGE = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
AS_IN_PAGE = tuple(re.findall(r"breakwater run deploy/configs/a9a\.toml --set (\S+)$", PAGE, re.MULTILINE))
"""The change to the config in the page's command for the paper's experiment, which ends below 1e-9 there."""


def model_of(out: Path) -> np.ndarray:
    return x_of(out)


# --- the paper's experiment -------------------------------------------------------------------------------------------


def test_a9a_converges_under_attack(processes: Processes, data_dir: Path, tmp_path: Path) -> None:
    assert AS_IN_PAGE == ("attack.kind=shb",)
    out = tmp_path / "run"
    run = processes.breakwater("run", A9A, "--data", data_dir, "--out", out, *sets(*AS_IN_PAGE))
    joined_s = float(run.line(r"20 of 20 clients joined in ([0-9.]+) s")[1])
    up_s = time.monotonic() - run.began
    until(lambda: len(rounds_of(out)) >= 20, "twenty rounds")
    memory_mb, count = processes.memory_mb(), len(processes.living())
    run.ends(0)
    converged(out, 1e-9)
    figures = (
        f"20 clients joined {up_s:.1f} s after the command was typed, {joined_s:.1f} s after the server listened; "
        f"{count} processes use {memory_mb:.0f} MB (load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)"
    )
    print(figures)
    # The promise is 10 s on two quiet cores, which benchmarks/ measures; the suite may share them with others.
    assert up_s < 30, figures
    assert memory_mb < 1500, figures


@pytest.mark.parametrize(
    ("overrides", "bound"),
    [
        pytest.param({}, 1e-8, id="alie, rand-k"),
        pytest.param({"attack.kind": "big", "compressor.kind": "identity"}, 1e-4, id="big"),
    ],
)
def test_a9a_converges_under_other_attacks(
    data_dir: Path, tmp_path: Path, overrides: dict[str, str], bound: float
) -> None:
    """In one process, whose runs end at the same bits (``test_sweep``)."""
    bw.run(A9A, data=data_dir, out=tmp_path / "run", overrides=overrides, processes=False, quiet=True)
    converged(tmp_path / "run", bound)


def converged(out: Path, bound: float) -> None:
    summary = summary_of(out)
    assert (summary["status"], summary["rounds"]) == ("finished", 600)
    assert summary["gap"] <= bound
    assert summary["rejected"] == {}


def test_a9a_under_shift_back_diverges_without_clipping(data_dir: Path, tmp_path: Path) -> None:
    changes = {"attack.kind": "shb", "compressor.kind": "identity", "strategy.clip": False}
    bw.run(A9A, data=data_dir, out=tmp_path / "run", overrides=changes, processes=False, quiet=True)
    summary, rounds = summary_of(tmp_path / "run"), rounds_of(tmp_path / "run")
    gaps = [line["gap"] for line in rounds if "gap" in line]
    assert summary["status"] == "diverged" or max(gaps) > 1e2
    assert all(line["lam"] is None and line["clipped"] == [] for line in rounds)


# --- the same bits as a plain loop ------------------------------------------------------------------------------------

SAME_BITS = {
    "digits, honest": (DIGITS, ("strategy.rounds=40",)),
    "digits, alie with jitter": (DIGITS, ("strategy.rounds=40", *ATTACKED, "attack.jitter=1.0", "aggregator.kind=rfa")),
    "digits, nan": (DIGITS, ("strategy.rounds=40", "federation.byzantine=2", "attack.kind=nan")),
}


@pytest.mark.parametrize("case", SAME_BITS)
def test_a_run_of_processes_ends_at_the_bits_of_a_plain_loop(processes: Processes, tmp_path: Path, case: str) -> None:
    text, changes = SAME_BITS[case]
    config, out = tmp_path / "config.toml", tmp_path / "run"
    config.write_text(parse(text, changes).to_toml(), encoding="utf-8")
    processes.breakwater("run", config, "--out", out).ends(0)

    (expected,) = deque(trajectory(open_experiment(config.read_text(encoding="utf-8"), None, tmp_path)), maxlen=1)
    found = model_of(out)
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()
    rejected = summary_of(out)["rejected"]
    assert set(rejected) == ({"not finite"} if case == "digits, nan" else set())


# --- what a run leaves behind -----------------------------------------------------------------------------------------


def test_the_run_folder_is_complete(processes: Processes, digits: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    out = tmp_path / "some" / "run"
    changes = (*ATTACKED, "strategy.rounds=25", "evaluation.every=10")
    run = processes.breakwater("run", digits, "--out", out, *sets(*changes))
    run.ends(0)
    assert "TLS" not in run.said(), "its clients are its own"
    logs = {f"client-{i}.log" for i in range(3)} | {"byzantine.log"}
    assert {path.name for path in (out / "logs").iterdir()} - {"server.log"} == logs
    assert {path.name for path in out.iterdir()} == {
        "config.toml",
        "metrics.jsonl",
        "summary.json",
        "model.safetensors",
        "curve.png",
        "report.html",
        "checkpoints",
        "run.json",
        "logs",
    }

    resolved = open_experiment(load(digits, changes).to_toml(), None, tmp_path).config
    assert load(out / "config.toml").to_toml() == resolved.to_toml()
    assert resolved.cohorts == {"cohort": 4, "full_cohort": 5}

    rounds = rounds_of(out)
    always = {"round", "kind", "cohort", "accepted", "rejected", "clipped", "lam", "step_norm"}
    always |= {"bytes_up", "bytes_down", "round_s", "deadline_s"}
    assert [line["round"] for line in rounds] == list(range(1, 26))
    for line in rounds:
        measured = {"loss", "accuracy"} if line["round"] in (10, 20, 25) else set()
        shown = {"distance", "cosine"} | ({"kept"} if line["lam"] is not None else set())
        assert set(line) - {"names", "same", "weight"} == always | measured | shown
        assert len(line["distance"]) == len(line["cosine"]) == len(line["accepted"])
        assert line["accepted"] == line["cohort"]
        assert len(line["cohort"]) == (5 if line["kind"] == "full" else 4)
        assert 0 < line["bytes_up"] < line["bytes_down"]
        assert line["round_s"] > 0
    assert {line["kind"] for line in rounds} == {"full", "difference"}
    names = {worker: name for line in rounds for worker, name in line.get("names", {}).items()}
    assert names == {"0": "client-0", "1": "client-1", "2": "client-2", "3": "byzantine-0", "4": "byzantine-1"}

    summary = summary_of(out)
    assert set(summary) == {
        *("status", "rounds", "loss", "accuracy", "measured_by", "start", "bytes_up", "bytes_down"),
        *("wall_s", "joined_s", "rejected", "rejected_by_client", "seed", "starts", "lives", "versions", "task"),
    }
    assert (summary["status"], summary["rounds"], summary["seed"], summary["rejected"]) == ("finished", 25, 3, {})
    assert (summary["loss"], summary["accuracy"]) == (rounds[-1]["loss"], rounds[-1]["accuracy"])
    assert summary["loss"] < summary["start"]["loss"]
    for way in ("bytes_up", "bytes_down"):
        assert summary[way] == sum(line[way] for line in rounds)
    assert sum(line["round_s"] for line in rounds) <= summary["wall_s"]
    assert {"python", "breakwater", "flwr", "grpcio", "numpy"} <= set(summary["versions"])

    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert imread(out / "curve.png").shape[:2] == (480, 1200)
    assert model_of(out).shape == (650,)


def start_long_run(processes: Processes, digits: Path, out: Path, *changes: str) -> Process:
    """Start a run that would go on for hours, and wait until it is under way."""
    run = processes.breakwater("run", digits, "--out", out, *sets(*ATTACKED, *changes))
    until(lambda: len(rounds_of(out)) >= 5 or not run.running(), "five rounds")
    assert run.running(), run.said()
    return run


def test_an_interrupted_run_leaves_its_folder_and_no_process(
    processes: Processes, digits: Path, tmp_path: Path
) -> None:
    run = start_long_run(processes, digits, out := tmp_path / "run")
    run.ctrl_c()
    run.ends(130)
    assert run.err == ["breakwater: interrupted"]
    processes.none_left()
    summary, rounds = summary_of(out), rounds_of(out)
    assert (summary["status"], summary["rounds"]) == ("interrupted", len(rounds))
    assert np.isfinite(model_of(out)).all()
    assert all(line["rejected"] == [] for line in rounds)


@pytest.mark.parametrize("count", [2, 8])
def test_ctrl_c_while_the_processes_start(processes: Processes, digits: Path, tmp_path: Path, count: int) -> None:
    run = processes.breakwater("run", digits, "--out", tmp_path / "run", *sets(*ATTACKED))
    until(lambda: len(processes.living()) >= count, f"{count} processes")
    run.ctrl_c()
    run.ends(130)
    assert run.err == ["breakwater: interrupted"]
    processes.none_left()


def test_ctrl_c_again_and_again(processes: Processes, digits: Path, tmp_path: Path) -> None:
    run = start_long_run(processes, digits, tmp_path / "run")
    while run.running():
        run.ctrl_c()
    assert run.wait() != 0
    processes.none_left()


def test_a_killed_server_ends_the_run(processes: Processes, digits: Path, tmp_path: Path) -> None:
    run = start_long_run(processes, digits, out := tmp_path / "run")
    os.kill(processes.holding(out / "metrics.jsonl"), signal.SIGKILL)
    run.ends(1)
    run.line("^the server was killed by SIGKILL; the run ends here")
    processes.none_left()


def test_the_run_goes_on_without_a_killed_client(processes: Processes, digits: Path, tmp_path: Path) -> None:
    run = start_long_run(processes, digits, out := tmp_path / "run")
    os.kill(processes.holding(out / "logs" / "client-1.log"), signal.SIGKILL)
    run.line(r"^client-1 was killed by SIGKILL; the run continues without it")
    at = len(rounds_of(out))
    until(lambda: len(rounds_of(out)) >= at + 20, "twenty more rounds")
    run.ctrl_c()
    run.ends(130)
    rounds = rounds_of(out)
    assert all(1 not in line["cohort"] and len(line["accepted"]) == 4 for line in rounds[at + 2 :])
    lost = [entry for line in rounds for entry in line["rejected"]]
    assert len(lost) <= 1  # it may have died between two rounds, or before it was asked
    assert all(entry["client"] == "client-1" and "connected: " in entry["reason"] for entry in lost)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (("compressor.kind=rand-k", "compressor.k=100000"), r"\[compressor\] k = 100000: .*650"),
        (("federation.byzantine=1",), r"federation.byzantine = 1 without an \[attack\] section"),
        (("task.partition=dirichlet(-1)",), r"\[task\] .*dirichlet\(-1\)"),
    ],
)
def test_what_cannot_start_says_so_in_one_line(
    forked: ForkServer, digits: Path, tmp_path: Path, changes: tuple[str, ...], complaint: str
) -> None:
    run = forked.breakwater("run", digits, "--out", tmp_path / "run", *sets(*changes))
    run.ends(2)
    run.line(f"^breakwater: error: .*{complaint}")
    assert len(run.err) == 1
    assert run.out == []


def test_data_that_are_not_there(forked: ForkServer, tmp_path: Path) -> None:
    run = forked.breakwater("run", A9A, "--data", tmp_path, "--out", tmp_path / "run")
    run.ends(2, SOON_S)
    run.line(r"^breakwater: error: \[task\] data file .a9a.gz. is not in the folder .*/libsvm; name the folder")
    assert len(run.err) == 1
