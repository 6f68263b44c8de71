"""The comparison of two checkouts: it sees a changed bit, a changed byte and a run that fails."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.trajectories import compared, difference, main
from tests.integration.processes import ROOT


def run_folder(path: Path, x: "np.ndarray[Any, Any]", **changes: Any) -> Path:
    path.mkdir(parents=True)
    record = {
        "round": 1, "kind": "full", "cohort": [0, 1], "accepted": [0], "bytes_up": 10, "bytes_down": 20, "round_s": 0.1,
        "step_norm": 1.0, "rejected": [{"client": "b", "reason": "silent: no reply within 5 s"}],
    }  # fmt: skip
    (path / "metrics.jsonl").write_text(json.dumps({**record, **changes}) + "\n", encoding="utf-8")
    save_file({"x": x}, path / "model.safetensors")
    return path


def test_run_folders_are_compared_to_the_last_bit(tmp_path: Path) -> None:
    x = np.arange(3.0)
    one = run_folder(tmp_path / "one", x)
    reason = [{"client": "b", "reason": "silent: no reply within 7 s"}]
    assert difference(one, run_folder(tmp_path / "same", x, round_s=0.2, rejected=reason)) == ""
    assert difference(one, run_folder(tmp_path / "bit", np.nextafter(x, 9.0))) == "the models differ"
    assert difference(one, run_folder(tmp_path / "dtype", x.astype(np.float32))) == "the models differ"
    changes: dict[str, dict[str, Any]] = {
        "up": {"bytes_up": 11},
        "down": {"bytes_down": 21},
        "accepted": {"accepted": [1]},
        "rejected": {"rejected": [{"client": "b", "reason": "oversize: 7"}]},
    }
    for name, change in changes.items():
        assert name in difference(one, run_folder(tmp_path / name, x, **change))


def test_runs_that_fail_or_are_missing_differ(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    run_folder(ours / "run", np.zeros(2))
    run_folder(theirs / "run", np.zeros(2))
    assert compared(ours, theirs, ("", "")) == "same"
    assert compared(ours, theirs, ("boom", "")) == "DIFFERS: here it fails: boom"
    assert compared(ours, theirs, ("", "boom")) == "DIFFERS: there it fails: boom"
    assert compared(ours, theirs, ("no data", "no data")) == "skipped: no data"
    run_folder(theirs / "more", np.zeros(2))
    assert compared(ours, theirs, ("", "")) == "DIFFERS: 2 runs there, 1 here"


@pytest.mark.slow
def test_a_checkout_that_steps_otherwise_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    shutil.copytree(ROOT, other, ignore=shutil.ignore_patterns(".*", "tests", "docs", "runs", "__pycache__"))
    options = [str(other), "--rounds", "3", "--only", "clipped-robust-sgd", "--over", "process"]
    descent = other / "strategies" / "descent.py"
    text = descent.read_text(encoding="utf-8")
    step = "state.x - self.step_size(ask) * along"
    assert text.count(step) == 1
    descent.write_text(text.replace(step, step.replace(" - ", " - 1.0001 * ")), encoding="utf-8")
    assert main(options) == 1
    assert "DIFFERS: sweep/runs/all-1/seed-1: round 1: loss" in capsys.readouterr().out
