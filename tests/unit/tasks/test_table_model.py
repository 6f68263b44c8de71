"""A trained model of a table task: what its file holds, what it predicts, and files that are not what they claim."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import breakwater as bw
from experiment.model_file import ModelForm, load_model
from foundation.errors import ConfigError
from server.run_folder import MODEL
from server.run_folder.reader import read_model
from server.run_folder.writer import RunFolder
from strategies.method import Vector
from tasks.contract import Setting
from tasks.digits import DigitsTask
from tasks.table import TableProblem
from tests.unit.tasks.tables import load, loaded, parquet, rows, task, write

Change = Callable[[dict[str, Any]], Any]


def save(folder: Path, problem: Any, x: Vector) -> Path:
    with RunFolder(folder) as run:
        run.form = ModelForm.of(problem)
        run.save(x)
    return folder / MODEL


@pytest.fixture
def problem(tmp_path: Path) -> TableProblem:
    return loaded(tmp_path / "data", rows(120, seed=1), model="mlp", hidden=(3,))


@pytest.fixture
def x(problem: TableProblem) -> Vector:
    return problem.initial() + np.random.default_rng(0).normal(size=problem.dim)


@pytest.fixture
def path(tmp_path: Path, problem: TableProblem, x: Vector) -> Path:
    return save(tmp_path / "run", problem, x)


def forged(path: Path, change: Change) -> Path:
    """Return a copy of a model whose description was changed."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        about = json.loads(file.metadata()["table"])
    change(about)
    other = path.with_name("forged.safetensors")
    save_file(load_file(path), other, {"table": json.dumps(about)})
    return other


def test_a_model_predicts_as_the_problem_does(problem: TableProblem, x: Vector, path: Path, tmp_path: Path) -> None:
    model = load_model(path)
    assert model.x.tobytes() == x.tobytes()
    assert model.columns == ("age", "bmi", "sex")
    party = problem._party(1).kept
    found = model.predict(write(tmp_path, rows(120, seed=1)))
    assert len(found) == found.compared == 120
    assert found.imputed == sum(line.split(",").count("") for line in rows(120, seed=1))
    assert found.classes == ("no", "yes")
    assert set(found.values) <= {"no", "yes"}
    assert found.probabilities is not None
    np.testing.assert_array_equal(found.values == "yes", found.probabilities[:, 1] > 0.5)
    inputs = problem.spec.encode(party, model.scaling)
    np.testing.assert_array_equal(inputs, problem._oracle(party).inputs)


def test_accuracy_is_that_of_the_problem_on_the_same_rows(tmp_path: Path) -> None:
    lines = rows(60, seed=2)
    problem = loaded(tmp_path, lines, 1, partition="replicated", test_share=0.0)
    x = np.random.default_rng(1).normal(size=problem.dim)
    found = bw.load_model(save(tmp_path / "run", problem, x)).predict(str(tmp_path / "t.csv"))
    assert found.accuracy == problem.evaluate(x).accuracy
    assert (found.rmse, found.mae) == (None, None)


def test_equal_models_give_equal_files_whoever_had_the_data(
    path: Path, problem: TableProblem, x: Vector, tmp_path: Path
) -> None:
    spec = task(partition="own", test_share=0.5, model="mlp", hidden=(3,), l2=0.1)
    server = load(tmp_path / "none", spec, party="server")
    reports = {str(worker): problem.statistics(worker) for worker in range(3)}
    form = ModelForm.of(server)  # before the scaling is known, as a server does
    server.settle(server.scaling_of(reports, 0))
    with RunFolder(tmp_path / "other") as run:
        run.form = form
        run.save(x)
    assert (tmp_path / "other" / MODEL).read_bytes() == path.read_bytes()
    read = read_model(tmp_path / "other")
    assert read.x is not None
    assert read.x.tobytes() == x.tobytes()
    assert read.tensors["weight_1"].shape == (4, 3)
    assert load_model(tmp_path / "other").x.tobytes() == x.tobytes(), "a run folder will do"


def test_a_regression_predicts_in_the_units_of_the_target(tmp_path: Path) -> None:
    spec = {"classes": None, "loss": "squared", "standardise": {"age": (50, 10), "bmi": (20, 5), "outcome": (1000, 50)}}
    lines = ["60,20,f,1100", "50,,m,1000", "50,25,f,"]
    problem = loaded(tmp_path / "data", lines[:2], 1, partition="replicated", test_share=0.0, **spec)
    x = np.array([2.0, 1.0, 0.0, 0.0, 0.0])
    found = load_model(save(tmp_path / "run", problem, x)).predict(write(tmp_path, lines))
    np.testing.assert_allclose(found.values, [1100, 1000, 1050])
    assert found.rmse == pytest.approx(0)
    assert (found.compared, found.imputed, found.accuracy, found.probabilities) == (2, 1, None, None)
    assert (
        found.summary() == f"3 rows, 1 missing values filled in, RMSE {found.rmse:.6g}, MAE {found.mae:.6g} on 2 rows"
    )
    assert list(csv.reader(found.to_csv().splitlines())) == [
        ["row", "prediction"],
        ["1", "1100"],
        ["2", "1000"],
        ["3", "1050"],
    ]


def test_predictions_are_written_as_a_table(path: Path, tmp_path: Path) -> None:
    model = load_model(path)
    found = model.predict({"age": [50, None], "bmi": [20.5, 30], "sex": ["f", None]})
    assert (found.targets, found.accuracy, found.rmse, found.mae) == (None, None, None, None)
    assert found.summary() == "2 rows, 2 missing values filled in, no targets to compare with"
    found.write(tmp_path / "p.csv")
    header, *lines = csv.reader((tmp_path / "p.csv").read_text().splitlines())
    assert header == ["row", "prediction", "probability of no", "probability of yes"]
    assert [line[0] for line in lines] == ["1", "2"]
    assert all(float(no) + float(yes) == pytest.approx(1, abs=1e-5) for _, _, no, yes in lines)
    with pytest.raises(ConfigError, match=r"absent/p\.csv: cannot be written"):
        found.write(tmp_path / "absent" / "p.csv")


def test_a_data_frame_is_a_table(path: Path) -> None:
    class Frame(dict[str, Any]):
        """Like pandas', which iterates over the names of its columns."""

    frame = Frame({"age": np.array([50.0, np.nan]), "bmi": np.array([20, 21]), "sex": np.array(["f", "m"], object)})
    assert load_model(path).predict(frame).imputed == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("old,20,f,no", 'line 2, column "age": "old" is no number'),
        ("50,20,x,no", 'line 2, column "sex": "x" is no category'),
        ("50,20,f,perhaps", 'line 2, column "outcome": "perhaps" is no class'),
    ],
)
def test_a_wrong_table_is_one_line_with_row_and_column(path: Path, tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_model(path).predict(write(tmp_path, [line]))
    assert words in str(error.value)


def test_parquet_and_csv_give_the_same_predictions(path: Path, tmp_path: Path) -> None:
    columns: dict[str, Any] = {"age": [50.25, None], "bmi": [20, 30], "sex": ["f", None]}
    model = load_model(path)
    found = model.predict(parquet(tmp_path / "t.parquet", columns)).to_csv()
    assert found == model.predict(columns).to_csv()
    assert found == model.predict(write(tmp_path, ["50.25,20,f", ",30,"], header="age,bmi,sex")).to_csv()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda about: about.pop("schema"), "schema"),
        (lambda about: about.update(schema=[1]), "schema"),
        (lambda about: about["schema"].update(more=1), "schema.more"),
        (lambda about: about["schema"].update(hidden=[4]), "other names or shapes"),
        (lambda about: about["schema"].update(hidden=[10**30]), "must be 1 to 8 layers"),
        (lambda about: about["schema"].update(dtype="float32"), "finite numbers of the type float32"),
        (lambda about: about["schema"].update(target="age"), 'column "age"'),
        (lambda about: about["schema"]["numeric"].append("height"), 'column "height": the scaling lacks it'),
        (lambda about: about.pop("scaling"), "its scaling: is no JSON object"),
        (lambda about: about["scaling"].update(age=None), 'column "age": must have centre, spread, fill'),
        (lambda about: about["scaling"]["age"].update(spread=0), "spread = 0: must be a number from"),
        (lambda about: about["scaling"]["age"].update(centre="1"), "centre = '1': must be a number"),
        (lambda about: about["scaling"]["age"].update(fill=float("nan")), "fill = nan: must be a number"),
        (lambda about: about["scaling"]["age"].update(fill=10**400), "fill = 1000"),
        (lambda about: about["scaling"].update({"x\n": about["scaling"]["age"]}), 'column "x?": is none of the config'),
        (lambda about: about["parameters"].append("other"), "is not the model of a run"),
        (lambda about: about["parameters"].append("bias_1"), "it names a parameter twice"),
        (lambda about: about.update(parameters=7), "is not the model of a run"),
    ],
)
def test_a_foreign_model_is_refused_in_one_line(path: Path, change: Change, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_model(forged(path, change))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_parameters_are_taken_by_name(path: Path, x: Vector) -> None:
    assert load_model(forged(path, lambda about: about["parameters"].reverse())).x.tobytes() == x.tobytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_destroyed_model_is_refused(problem: TableProblem, tmp_path: Path, x: Vector, value: float) -> None:
    x[3] = value
    with pytest.raises(ConfigError, match="its parameters must be finite numbers"):
        load_model(save(tmp_path / "run", problem, x))


def test_models_of_other_tasks_and_no_models_are_refused(tmp_path: Path) -> None:
    digits = DigitsTask(model="softmax").load(Setting(2))
    other = save(tmp_path / "digits", digits, digits.initial())
    with pytest.raises(
        ConfigError, match=r'is no model of a table task \(kind = "table"\), and only these can predict'
    ):
        load_model(other)
    with pytest.raises(ConfigError, match="no such file"):
        load_model(tmp_path / "absent")
    with pytest.raises(ConfigError, match="no model is there"):
        load_model(tmp_path)
    with pytest.raises(ConfigError, match="/dev/null: is no file"):
        load_model("/dev/null")
    (tmp_path / "text").write_text("no model")
    with pytest.raises(ConfigError, match="is not the model of a run"):
        load_model(tmp_path / "text")


def test_a_model_that_is_saved_before_anything_is_agreed_on_cannot_predict(tmp_path: Path) -> None:
    server = load(tmp_path, task(partition="own"), party="server")
    with pytest.raises(ConfigError, match="the scaling lacks it"):
        load_model(save(tmp_path / "run", server, server.initial()))
