"""``breakwater predict``: what it writes, what it prints, and what it refuses."""

import shlex
from pathlib import Path

import numpy as np
import pytest

from deploy.cli import main
from experiment.model_file import ModelForm
from server.run_folder import MODEL
from server.run_folder.writer import RunFolder
from tests.docs.blocks import blocks_of, commands
from tests.unit.tasks.tables import loaded, rows, write


@pytest.fixture
def model(tmp_path: Path) -> Path:
    problem = loaded(tmp_path / "data", rows(90), 1, partition="replicated")
    with RunFolder(tmp_path / "run") as run:
        run.form = ModelForm.of(problem)
        run.save(np.array([2.0, -2.0, 0.0, 0.5, 0.0]))
    return tmp_path / "run" / MODEL


def test_predictions_go_to_a_file_or_to_the_output(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = write(tmp_path, rows(200, seed=9)), tmp_path / "p.csv"
    assert main(["predict", str(model), str(table), "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert told.out.startswith(f"{out}: 200 rows, ")
    assert float(told.out.partition("accuracy ")[2].split(" ")[0]) > 70
    assert told.out.endswith("on 200 rows\n")
    assert main(["predict", str(model.parent), str(table)]) == 0
    printed = capsys.readouterr()
    assert printed.out == out.read_text()
    assert f"{out}: {printed.err}" == told.out


def test_the_commands_of_the_page(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = (block for block in blocks_of("docs/tasks.md") if "test_predict.py" in "".join(block.words))
    (tmp_path / "runs").mkdir()
    (tmp_path / "run").rename(tmp_path / "runs" / "study")
    write(tmp_path, rows(20), "new.csv")
    monkeypatch.chdir(tmp_path)
    for command in commands(block.text):
        program, *arguments = shlex.split(command)
        assert program == ".venv/bin/breakwater"
        assert main(arguments) == 0
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 21


def test_what_cannot_be_done_is_one_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write(tmp_path, ["50,20,f,no"])
    broken = write(tmp_path, ["50,20,x,no"], "broken.csv")
    for arguments, words in (
        ([tmp_path / "absent", table], "absent: no such file"),
        ([model, tmp_path / "absent.csv"], "absent.csv: cannot be read: No such file"),
        ([model, broken], 'broken.csv, line 2, column "sex": "x" is no category of the config ("f", "m")'),
        ([model, table, "--out", tmp_path], "is a folder; give the path of a file"),
        ([model, table, "--out", "/dev/null"], "is not a regular file"),
        ([model, table, "--out", tmp_path / "no" / "p.csv"], "does not exist"),
        ([model, table, "--out", table], "is the model or the table itself"),
        ([model, table, "--out", model], "is the model or the table itself"),
    ):
        assert main(["predict", *map(str, arguments)]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith("breakwater: error: ")
        assert told.err.count("\n") == 1
        assert words in told.err
    assert table.read_text().endswith("50,20,f,no\n")
