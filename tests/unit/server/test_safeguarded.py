"""A whole run with a safeguard: how it ends, what it leaves, and that it goes on from a checkpoint to the same bits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.inprocess import grid_of
from experiment.config import parse
from experiment.explain import sentences
from experiment.model_file import read_model, read_model_file
from experiment.opened import Experiment, open_config
from foundation.errors import ConfigError
from server.monitor.exporters import Monitoring
from server.run import run
from server.run_folder import BEST, MODEL
from server.run_folder.checkpoints import resumed
from server.run_folder.reader import read_rounds
from server.run_folder.writer import RunFolder
from strategies.method import Evaluation

TEXT = """
[federation]
clients = 4
byzantine = 1
[task]
kind = "digits"
model = "softmax"
[attack]
kind = "alie"
[strategy]
kind = "byz-ef21-sgdm"
rounds = 10
gamma = 0.1
batch = 8
[compressor]
kind = "top-k"
k = 20
[evaluation]
every = 1
stop = { measure = "accuracy", patience = 9 }
[safeguard]
factor = 1.5
times = 2
[checkpoint]
every = 1
keep = 20
"""
BAD = (4, 7)
"""The rounds whose model measures badly."""


class Measured:
    """Losses that rise in given rounds, whatever the model is; else its own."""

    def __init__(self, experiment: Experiment, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._own = experiment.problem.evaluate
        self._folder = folder
        monkeypatch.setattr(experiment.problem, "evaluate", self)

    def __call__(self, x: Any) -> Evaluation:
        found, round_ = self._own(x), len((self._folder / "metrics.jsonl").read_bytes().splitlines()) + 1
        return Evaluation(1e9, 0.0) if round_ in BAD else found


def run_in(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clients: Any = None,
    *,
    stop_after: int = 0,
    incarnation: int = 1,
) -> Any:
    experiment = open_config(parse(TEXT))
    Measured(experiment, monkeypatch, path)
    point = None
    if incarnation > 1:
        resumed.cache_clear()
        point = resumed(path, experiment)
    with RunFolder(path, None if point is None else point[0]) as folder:
        if stop_after:
            add = folder.add

            def interrupted(record: Any) -> None:
                add(record)
                if record.round == stop_after:
                    raise KeyboardInterrupt

            monkeypatch.setattr(folder, "add", interrupted)
        shown = Monitoring(quiet=True, pictures=False)
        run(experiment, folder, clients or grid_of(experiment), shown, point=point, incarnation=incarnation)
    return json.loads((path / "summary.json").read_text())


def left(path: Path) -> tuple[bytes, bytes, list[str]]:
    return (path / MODEL).read_bytes(), (path / BEST).read_bytes(), [record.note for record in read_rounds(path)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        return path, run_in(path, patch)


def test_summary_and_folder_show_the_best_model_and_why_the_run_ended(whole: tuple[Path, Any]) -> None:
    path, summary = whole
    assert (summary["status"], summary["rounds"], summary["rollbacks"]) == ("finished", 10, 2)
    assert summary["ended"] == "all 10 rounds were run"
    best = summary["best"]
    found = {record.round: record.evaluation for record in read_rounds(path)}[best["round"]]
    assert found is not None
    assert found.accuracy == best["accuracy"]
    experiment = open_config(parse(TEXT))
    x = read_model_file(path / BEST).x
    assert x is not None
    assert experiment.problem.evaluate(x).accuracy == best["accuracy"]
    assert [r.round for r in read_rounds(path) if r.note.startswith("safeguard: ")] == list(BAD)


@pytest.mark.parametrize("cut", [3, 4, 5, 8])
def test_a_run_that_is_cut_off_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, Any], cut: int
) -> None:
    clients = grid_of(open_config(parse(TEXT)))
    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path, monkeypatch, clients, stop_after=cut)
    monkeypatch.undo()
    summary = run_in(tmp_path, monkeypatch, clients, incarnation=2)
    assert left(tmp_path) == left(whole[0])
    assert {key: summary[key] for key in ("best", "rollbacks", "ended")} == {
        key: whole[1][key] for key in ("best", "rollbacks", "ended")
    }


def test_a_run_that_has_ended_early_is_over_when_it_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    early = TEXT.replace("patience = 9", "target = 0.01")
    experiment = open_config(parse(early))
    with RunFolder(tmp_path) as folder:
        run(experiment, folder, grid_of(experiment), Monitoring(quiet=True, pictures=False))
    rounds, x = read_rounds(tmp_path), read_model(tmp_path).x
    assert len(rounds) == 1
    resumed.cache_clear()
    point = resumed(tmp_path, experiment)
    with RunFolder(tmp_path, point[0]) as folder:
        run(experiment, folder, grid_of(experiment), Monitoring(quiet=True, pictures=False), point=point)
    assert len(read_rounds(tmp_path)) == 1
    assert x is not None
    assert (found := read_model(tmp_path).x) is not None
    assert np.array_equal(found, x)
    assert "reached the target" in json.loads((tmp_path / "summary.json").read_text())["ended"]


def test_the_sections_of_the_page_are_some() -> None:
    page = (Path(__file__).parents[3] / "docs" / "running.md").read_text(encoding="utf-8")
    sections = page.partition("test_the_sections_of_the_page_are_some -->\n```toml\n")[2].partition("```")[0]
    config = parse(TEXT.partition("[evaluation]")[0] + sections)
    assert config.safeguard is not None
    said = dict(sentences(config, None))["ends"]
    assert said == (
        "at accuracy 0.9 or after 10 evaluations without a better accuracy, at the latest after round 10; "
        "goes back up to 3 times where the loss exceeds 2 times its lowest"
    )


def test_what_cannot_be_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r'^config: \[safeguard\]: needs a measured loss, and evaluation.by = "none"'):
        parse(TEXT, {"evaluation.by": "none"})
    with pytest.raises(ConfigError, match=r"stop.*give patience, target or both"):
        parse(TEXT, {"evaluation.stop": {"measure": "loss"}})
    with pytest.raises(ConfigError, match=r"stop.*target = 90: must be an accuracy"):
        parse(TEXT, {"evaluation.stop": {"measure": "accuracy", "target": 90.0}})
    with pytest.raises(ConfigError, match=r"\[safeguard\] factor = 1.0: must be greater than 1"):
        parse(TEXT, {"safeguard.factor": 1.0})
