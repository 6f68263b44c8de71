"""The plain loop as a program of its own; other tests compare whole runs with it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOOP, DEMO = ROOT / "examples" / "plain_loop.py", ROOT / "deploy" / "configs" / "demo.toml"


@pytest.mark.parametrize(
    ("arguments", "head", "rounds"),
    [
        ([], "10 clients; 3 of them run the attack foe; 2410 parameters", 200),
        ([DEMO, "strategy.rounds=7", "attack.kind=bf"], "10 clients; 3 of them run the attack bf; 2410 parameters", 7),
    ],
)
def test_it_runs_by_itself_and_prints_a_run(
    arguments: list[str | Path], head: str, rounds: int, tmp_path: Path
) -> None:
    command = [sys.executable, LOOP, *arguments]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    first, titles, *lines = ended.stdout.splitlines()
    assert first.startswith(head)
    assert titles.split() == ["round", "loss", "accuracy"]
    numbers = [[float(value.rstrip("%")) for value in line.split()] for line in lines]
    assert (numbers[0][0], numbers[-1][0]) == (1, rounds)
    assert numbers[-1][1] < numbers[0][1]
    assert numbers[-1][2] > 90 or rounds < 200
