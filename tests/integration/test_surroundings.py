"""A local run where folder and environment hold what is not meant for it."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.integration.processes import COMMAND, ROOT, Processes, sets, summary_of

pytestmark = pytest.mark.slow

SHORT = sets("strategy.rounds=4", "evaluation.every=2")
ODD = {
    "PYTHONWARNINGS": "error",
    "PYTHONOPTIMIZE": "2",
    "MPLBACKEND": "nonsense",
    "MPLCONFIGDIR": "/proc/nowhere",
    "HOME": "/proc/nowhere",
    "NUMBA_CACHE_DIR": "/proc/nowhere",
    "NUMBA_NUM_THREADS": "0",
    "OMP_NUM_THREADS": "many",
    "OPENBLAS_NUM_THREADS": "0",
    "COLUMNS": "0",
    "TERM": "dumb",
    "TZ": "Nowhere/Land",
    "LC_ALL": "nonsense",
    "TMPDIR": "/proc/nowhere",
}


def test_a_run_in_an_odd_environment_has_its_results(processes: Processes, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = [f"{name}={value}" for name, value in ODD.items()]
    run = processes.start("env", *given, COMMAND, "run", digits, "--out", out, *SHORT)
    run.ends(0)
    assert summary_of(out)["status"] == "finished"
    assert {"report.html", "curve.png", "model.safetensors"} <= {path.name for path in out.iterdir()}
    assert run.out[-1].startswith("finished after 4 rounds")
    assert "Traceback" not in run.said()


def test_packages_of_the_same_names_are_not_taken_for_ours(processes: Processes, digits: Path, tmp_path: Path) -> None:
    for name in ("client", "server", "link", "tasks", "numpy", "random"):
        (tmp_path / "here").mkdir(exist_ok=True)
        (tmp_path / "here" / f"{name}.py").write_text("raise RuntimeError('taken for ours')")
    for name in ("client", "server", "link", "tasks"):
        (tmp_path / "path" / name).mkdir(parents=True)
        (tmp_path / "path" / name / "__init__.py").write_text("raise RuntimeError('taken for ours')")
    out = tmp_path / "a run with ümlauts, 100%s and blanks"
    run = processes.start(
        "env", "-C", tmp_path / "here", f"PYTHONPATH={tmp_path / 'path'}", COMMAND, "run", digits, "--out", out, *SHORT
    )
    run.ends(0)
    assert summary_of(out)["status"] == "finished"


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_folder_that_is_gone_is_one_line(command: str, digits: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f'cd "{gone}" && rmdir "{gone}" && exec "{COMMAND}" {command} "{digits}"'
    ended = subprocess.run(
        ["/bin/sh", "-c", script], capture_output=True, text=True, env=os.environ, cwd=ROOT, check=False
    )
    told = "breakwater: error: the current folder no longer exists; cd to an existing one\n"
    assert (ended.returncode, ended.stdout, ended.stderr.splitlines(keepends=True)[-1]) == (2, "", told)
    assert "Traceback" not in ended.stderr
