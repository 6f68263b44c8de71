"""Whole runs in which clients answer running statistics: what they do to measures and files, and not to training."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message

pytest.importorskip("torch")

from deploy.inprocess import grid_of, grid_of_parties
from experiment.config import load
from experiment.model_file import read_model, read_model_file
from experiment.opened import Experiment, open_config
from experiment.parties import Parties
from foundation.errors import ConfigError
from link import batch_statistics
from link.flwr_compat import APP_RAISED
from server.monitor.exporters import Monitoring
from server.run import run
from server.run_folder import BEST, MODEL
from server.run_folder.checkpoints import resumed
from server.run_folder.reader import read_rounds
from server.run_folder.writer import RunFolder
from strategies.batch_statistics import QUESTION
from strategies.method import Evaluation, Vector
from tests.parties import federation, points

NORM = "return nn.Sequential(nn.Linear(self.inputs, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))"
ROOT_DATA = "\n    def root_data(self, folder):\n        return folder and self.read(folder / 'points.csv')\n"
BUFFERS = ("1.running_mean", "1.running_var")
STATS = np.array([0.25, 0.5, 0.75, 1.0, 1.0, 2.0, 3.0, 4.0])

Lie = Callable[[Message], Message]


def study(place: Path, *, root: bool = False, partition: str = "own") -> Path:
    """Write a federation of four whose model has batch norm; of shared data all have one file."""
    config = federation(place)
    source = (place / "points.py").read_text()
    (place / "points.py").write_text(source.replace("return nn.Linear(self.inputs, 2)", NORM) + ROOT_DATA * root)
    if partition != "own":
        np.savetxt(place / "points.csv", points(90, 5), delimiter=",")
        shared = f'partition = "{partition}"\nnorm_stats = "aggregate"'
        config.write_text(config.read_text().replace('partition = "own"', shared))
    return config


def opened(config: Path, changes: Mapping[str, Any]) -> tuple[Experiment, Any]:
    """Return an experiment at its server, and its clients."""
    read = load(config, changes)
    place = config.parent
    experiment = open_config(read, place / "server", place)
    if not read.own_data:
        return experiment, grid_of(experiment)
    return experiment, grid_of_parties(experiment, Parties.of(read, place / "parties", ()))


def answering(grid: Any, lies: Mapping[str, Lie]) -> None:
    """Let clients answer questions for statistics so."""
    for client in grid._clients.values():
        if client.name in lies:
            client.app = _liar(client.app, lies[client.name])


def _liar(inner: Any, lie: Lie) -> Any:
    return lambda message, context: (
        lie(message) if message.metadata.message_type == QUESTION else inner(message, context)
    )


def sending(values: Any) -> Lie:
    """Return what answers with these numbers."""
    return lambda asked: Message(batch_statistics.write_answer(np.asarray(values)), reply_to=asked)


def trained(
    config: Path, lies: Mapping[str, Lie] = {}, changes: Mapping[str, Any] = {}, name: str = "run"
) -> tuple[Path, Any, Experiment]:
    """Run an experiment; return its folder, its summary, and the server's experiment."""
    experiment, grid = opened(config, {"evaluation.by": "both", **changes})
    answering(grid, lies)
    out = config.parent / name
    with RunFolder(out) as folder:
        run(experiment, folder, grid, Monitoring(quiet=True, pictures=False), incarnation=1)
    return out, json.loads((out / "summary.json").read_text()), experiment


def stats_in(path: Path) -> Vector:
    tensors = read_model_file(path).tensors
    return np.concatenate([tensors[name] for name in BUFFERS])


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Experiment]:
    return trained(study(tmp_path_factory.mktemp("honest")))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Experiment]:
    return trained(study(tmp_path_factory.mktemp("reference"), root=True))


@pytest.mark.parametrize("lie", [1e300, -1e6])
def test_one_liar_of_four_moves_neither_training_nor_measures(
    tmp_path: Path, honest: tuple[Path, Any, Experiment], reference: tuple[Path, Any, Experiment], lie: float
) -> None:
    values = np.full(8, lie)
    values[4:] = abs(lie)
    out, summary, _ = trained(study(tmp_path), {"p3": sending(values)})
    folder, expected, experiment = reference
    assert experiment.config.task.norm_stats == "reference"  # type: ignore[union-attr]  # a custom task
    models = [read_model(path).x for path in (out, folder, honest[0])]
    assert models[0].tobytes() == models[1].tobytes() == models[2].tobytes()  # type: ignore[union-attr]
    assert summary["loss"] == pytest.approx(expected["loss"], abs=0.1)
    assert summary["accuracy"] == pytest.approx(expected["accuracy"], abs=0.05)
    np.testing.assert_allclose(stats_in(out / MODEL), stats_in(honest[0] / MODEL), atol=0.5)


def test_the_resolved_config_shows_the_default_and_measures_follow_the_answers(
    honest: tuple[Path, Any, Experiment],
) -> None:
    out, summary, experiment = honest
    assert load(out / "config.toml").task.norm_stats == "aggregate"  # type: ignore[union-attr]  # a custom task
    server: Any = experiment.problem
    x = read_model(out).x
    assert x is not None
    server.set_norm_stats(stats_in(out / MODEL).astype(np.float64))
    assert server.evaluate(x).loss == pytest.approx(summary["loss"], rel=1e-9)
    read = load(out.parent / "study.toml")
    for name, claim in summary["claims"]["clients"].items():
        client = read.task.load(read.setting(out.parent / "parties" / name, out.parent, "client"))
        client.set_norm_stats(server.norm_stats(x))  # type: ignore[attr-defined]  # a module
        assert client.measure(0, x).loss == claim["loss"]  # type: ignore[attr-defined]
    bytes_ = [record.statistics_bytes for record in read_rounds(out)]
    assert [all(each) for each in bytes_] == [False, False, True, False, False, True]
    claimed = [record.claims.bytes_up for record in read_rounds(out) if record.claims is not None]
    assert summary["evaluation_bytes"]["up"] > sum(up for up, _ in bytes_) + sum(claimed)  # and those of x^0


def declining(asked: Message) -> Message:
    return Message(Error(APP_RAISED, "declined: statistics"), reply_to=asked)


def test_a_bad_answer_is_refused_with_who_and_why_and_the_others_are_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lies = [
        (sending(np.full(8, np.nan)), "not finite: 8 of 8 statistics"),
        (sending(-STATS), "out of bounds: a variance is -4, must be at least 0"),
        (sending(STATS[:7]), "wrong shape: (7,), expected (8,)"),
        (sending(np.zeros(1000)), "oversize: "),
        (declining, "declined: statistics"),
    ]
    others = {name: sending(STATS) for name in ("p0", "p1", "p2")}
    lie = lambda asked: lies[int(asked.metadata.group_id) % len(lies)][0](asked)  # noqa: E731  # one line
    changes = {"strategy.rounds": len(lies) - 1, "evaluation.every": 1, "evaluation.by": "server"}
    with caplog.at_level(logging.INFO, "breakwater.strategy"):
        out, summary, _ = trained(study(tmp_path), {**others, "p3": lie}, changes)
    assert (summary["status"], summary["rounds"]) == ("finished", 4)
    logged = [(record.levelname, record.getMessage()) for record in caplog.records]
    for round_, (_, said) in enumerate(lies):
        begins = f"round {round_}: statistics: no answer of p3 counts: {said}"
        levels = [level for level, message in logged if message.startswith(begins)]
        assert levels == ["INFO" if said.startswith("declined") else "WARNING"]
    np.testing.assert_allclose(stats_in(out / MODEL), STATS, rtol=1e-6)


def test_with_too_few_answers_the_last_statistics_stay_and_the_round_says_so(tmp_path: Path) -> None:
    def until_round(last: int) -> Lie:
        def answer(asked: Message) -> Message:
            if int(asked.metadata.group_id) > last:
                return declining(asked)
            return sending(STATS)(asked)

        return answer

    config = study(tmp_path)
    lies = {name: until_round(2) for name in ("p0", "p1")} | {name: sending(STATS) for name in ("p2", "p3")}
    out, summary, _ = trained(config, lies, {"evaluation.every": 1, "strategy.rounds": 4})
    assert summary["status"] == "finished"
    needed = "at least 3 are needed (2 byzantine + 1)"
    said = f"batch norm: 2 usable answers, and up to 1 may be lies; {needed}: those of round 2 stay in use"
    assert [said in record.note for record in read_rounds(out)] == [False, False, True, True]
    np.testing.assert_allclose(stats_in(out / MODEL), STATS)
    none = {name: until_round(-1) for name in ("p0", "p1", "p2", "p3")}
    out, summary, _ = trained(config, none, {"strategy.rounds": 1, "evaluation.by": "server"}, "none")
    assert "those that model() made stay in use" in read_rounds(out)[0].note
    assert stats_in(out / MODEL).tolist() == [0.0] * 4 + [1.0] * 4


# --- shared data: checkpoints and going back --------------------------------------------------------------------------

GUARDED = {
    "evaluation.every": 1,
    "strategy.rounds": 7,
    "evaluation.stop": {"measure": "accuracy", "patience": 9},
    "safeguard.factor": 1.5,
    "checkpoint.every": 1,
    "checkpoint.keep": 9,
}
BAD = 4
"""The round whose model measures badly."""


def guarded(
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    cut: int = 0,
    within: int = 0,
    name: str = "run",
    used: dict[int, Vector] | None = None,
) -> Path:
    """Run until it ends; go on if it was cut off.

    Args:
        config: of shared data.
        monkeypatch: for a round that measures badly.
        cut: the round after which it is cut off.
        within: the round in which it is, once clients have answered.
        name: of the run folder.
        used: takes the statistics in use after each round.
    """
    experiment, clients = opened(config, GUARDED)
    problem: Any = experiment.problem
    out = config.parent / name
    point, evaluate = None, problem.evaluate
    if out.exists():
        resumed.cache_clear()
        point = resumed(out, experiment)

    def measured(x: Vector) -> Evaluation:
        round_ = len((out / "metrics.jsonl").read_bytes().splitlines()) + 1
        if round_ == within:
            raise KeyboardInterrupt
        found: Evaluation = evaluate(x)
        return replace(found, loss=1e9, accuracy=0.0) if round_ == BAD else found

    monkeypatch.setattr(problem, "evaluate", measured)
    with RunFolder(out, None if point is None else point[0]) as folder:
        add = folder.add

        def adding(record: Any) -> None:
            add(record)
            if used is not None:
                used[record.round] = problem.norm_stats(problem.initial())
            if record.round == cut:
                raise KeyboardInterrupt

        folder.add = adding  # type: ignore[method-assign]  # to cut it off
        shown = Monitoring(quiet=True, pictures=False)
        run(experiment, folder, clients, shown, point=point, incarnation=1 if point is None else 2)
    return out


def left(out: Path) -> tuple[Any, ...]:
    rounds = [(record.evaluation, record.note) for record in read_rounds(out)]
    return (out / MODEL).read_bytes(), (out / BEST).read_bytes(), rounds


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Any, ...]]:
    config = study(tmp_path_factory.mktemp("whole"), partition="iid")
    with pytest.MonkeyPatch.context() as patch:
        return config, left(guarded(config, patch))


@pytest.mark.parametrize("cut", [BAD, 6])
def test_a_run_that_is_cut_off_goes_on_with_the_same_statistics(
    monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, tuple[Any, ...]], cut: int
) -> None:
    config, expected = whole
    with pytest.raises(KeyboardInterrupt):
        guarded(config, monkeypatch, cut=cut, name=f"cut{cut}")
    monkeypatch.undo()
    assert left(guarded(config, monkeypatch, name=f"cut{cut}")) == expected


def test_a_run_that_is_cut_off_while_it_measures_leaves_the_statistics_of_its_model(
    monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, tuple[Any, ...]]
) -> None:
    config, expected = whole
    used: dict[int, Vector] = {}
    with pytest.raises(KeyboardInterrupt):
        guarded(config, monkeypatch, within=3, name="within", used=used)
    np.testing.assert_allclose(stats_in(config.parent / "within" / MODEL), used[2], rtol=1e-12)
    monkeypatch.undo()
    assert left(guarded(config, monkeypatch, name="within", used=used)) == expected
    back = {number: note for number, (_, note) in enumerate(expected[2], 1) if note}
    assert list(back) == [BAD]
    good = int(back[BAD].rpartition("back to the model of round ")[2])
    assert np.array_equal(used[BAD], used[good])  # those of the model that it went back to
    assert not np.array_equal(used[BAD + 1], used[BAD])


def test_the_best_model_keeps_the_statistics_that_it_was_measured_with(whole: tuple[Path, tuple[Any, ...]]) -> None:
    config, (_, _, rounds) = whole
    out = config.parent / "run"
    assert [bool(note) for _, note in rounds] == [number == BAD for number in range(1, 8)]  # it went back once
    best = json.loads((out / "summary.json").read_text())["best"]
    experiment, _ = opened(config, GUARDED)
    problem: Any = experiment.problem
    x = read_model_file(out / BEST).x
    problem.set_norm_stats(stats_in(out / BEST).astype(np.float64))
    assert problem.evaluate(x).loss == pytest.approx(best["loss"], rel=1e-9)
    last = read_rounds(out)[-1].evaluation
    assert last is not None
    problem.set_norm_stats(stats_in(out / MODEL).astype(np.float64))
    assert problem.evaluate(read_model(out).x).loss == pytest.approx(last.loss, rel=1e-9)


def test_the_server_refuses_reference_statistics_without_training_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'norm_stats = "reference".*layer "1".*give them by root_data\(folder\)'):
        opened(study(tmp_path), {"task.norm_stats": "reference"})
