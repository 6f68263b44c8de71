"""A server that goes on from a checkpoint, with clients that were there all the while: it is the run that it was."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from client.rollback import Rollback
from experiment.config import StrategyUnion, parse
from experiment.opened import Experiment, open_experiment
from experiment.problems import kinds_of
from foundation.errors import ConfigError
from link import codec
from link.worker_state import Page, StateDict
from server.run_folder.checkpoints import Checkpoint, Checkpoints, digest_of, of_standing
from server.run_folder.state_dict import StateError, course_of, put_together, take_apart
from strategies.method import CheckpointEpoch, Evaluation
from strategies.safeguard import Course
from strategies.strategy import RobustStrategy, Standing
from tests.local_grid import LocalGrid, federation
from tests.unit.client.test_visiting_workers import ATTACKS, METHODS, TEXT, opened, small_config

ROUNDS, EVERY, KILLED_AFTER = 9, 2, 7


def checkpoint_of(experiment: Experiment, strategy: RobustStrategy) -> Checkpoint:
    return of_standing(strategy.standing, experiment=digest_of(experiment.config), seats={}, present=5, wall_s=1.5)


def run(
    grid: LocalGrid,
    strategy: RobustStrategy,
    experiment: Experiment,
    checkpoints: Checkpoints,
    incarnation: int,
    rounds: int,
) -> None:
    """Run to the end of a round, with a checkpoint every two rounds, as the server does."""

    def keep() -> None:
        checkpoints.save(checkpoint_of(experiment, strategy))
        strategy.epoch = CheckpointEpoch(incarnation, strategy.state.round - 1)

    if strategy.state is None:
        strategy.state = experiment.method.start(experiment.problem.initial())
        keep()
    strategy.on_round = lambda record: keep() if record.round % EVERY == 0 else None
    strategy.start(grid, codec.to_arrays(experiment.problem.initial()), num_rounds=rounds)


def resumed_is_the_same(experiment: Experiment, folder: Path, damage: Callable[[Path], object] | None = None) -> None:
    """Check that a run whose server is killed after a round ends as one that was left alone."""
    grid, undisturbed = federation(experiment)
    undisturbed.start(grid, codec.to_arrays(experiment.problem.initial()), num_rounds=ROUNDS)

    grid, first = federation(experiment)
    checkpoints = Checkpoints(folder, keep=3)
    run(grid, first, experiment, checkpoints, 1, KILLED_AFTER)
    if damage is not None:
        damage(folder / "checkpoints" / "00000006.safetensors")
    point, state = Checkpoints(folder, keep=3).newest(experiment)
    assert point.round == (6 if damage is None else 4)
    _, second = federation(experiment)
    second.state, second.epoch = state, CheckpointEpoch(2, point.round)
    run(grid, second, experiment, checkpoints, 2, ROUNDS)
    assert second.state.x.tobytes() == undisturbed.state.x.tobytes()
    assert second.last is not None
    assert undisturbed.last is not None
    assert second.last == replace(undisturbed.last, round_s=second.last.round_s)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("method", METHODS)
def test_the_trajectory_is_that_of_a_server_that_was_never_killed(method: str, attack: str, tmp_path: Path) -> None:
    resumed_is_the_same(opened(*METHODS[method], *ATTACKS[attack]), tmp_path)


@pytest.mark.parametrize("kind", kinds_of(StrategyUnion))
def test_every_method_can_go_on(kind: str, tmp_path: Path) -> None:
    resumed_is_the_same(open_experiment(tomli_w.dumps(small_config(kind)), None, None), tmp_path)


@pytest.mark.parametrize("method", ["momentum", "demoa"])
def test_a_schedule_and_a_server_step_go_on(method: str, tmp_path: Path) -> None:
    cosine = (f"strategy.rounds={ROUNDS}", 'strategy.gamma={kind="cosine",start=0.1,warmup=2}')
    resumed_is_the_same(opened(*METHODS[method], *cosine, 'strategy.server={kind="adam"}'), tmp_path)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)


def forge(path: Path) -> None:
    """Another number in the header, which is JSON as it was."""
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'\\"present\\": 5', b'\\"present\\": 4'))
    assert path.read_bytes() != raw


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "flipped": flip,
    "forged": forge,
    "huge-header": lambda path: path.write_bytes(struct.pack("<Q", 1 << 62) + path.read_bytes()[8:]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resumed_is_the_same(opened(*METHODS["dasha"]), tmp_path, DAMAGES[damage])
    (said,) = [record.message for record in caplog.records if record.name == "breakwater.server"]
    assert said.startswith(f"{tmp_path}/checkpoints/00000006.safetensors: ")
    assert said.endswith("; going back to the one before it")


# --- the files --------------------------------------------------------------------------------------------------------


def saved(tmp_path: Path, *rounds: int) -> tuple[Experiment, Checkpoints]:
    experiment = opened()
    start = experiment.method.start(experiment.problem.initial())
    checkpoints = Checkpoints(tmp_path, keep=3)
    for round_ in rounds:
        state = replace(start, round=round_ + 1)
        checkpoints.save(
            of_standing(Standing(state), experiment=digest_of(experiment.config), seats={"a": 1}, present=1, wall_s=2.0)
        )
    return experiment, checkpoints


def names(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "checkpoints").iterdir())


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 5, 10, 15, 20, 25)
    assert names(tmp_path) == [f"{round_:08d}.safetensors" for round_ in (15, 20, 25)]


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    experiment, checkpoints = saved(tmp_path, 5)
    found, state = checkpoints.newest(experiment)
    assert (found.round, found.seats, found.present, found.wall_s) == (5, {"a": 1}, 1, 2.0)
    assert np.array_equal(state.x, experiment.problem.initial())


def test_the_scales_of_step_and_multiplier_come_back(tmp_path: Path) -> None:
    experiment, _ = saved(tmp_path)
    state, known = experiment.method.start(experiment.problem.initial()), digest_of(experiment.config)
    checkpoint = of_standing(Standing(state, None, 0.25, 0.5, 3), experiment=known, seats={}, present=1, wall_s=0.0)
    Checkpoints(tmp_path, keep=1).save(checkpoint)
    found, _ = Checkpoints(tmp_path, keep=1).newest(experiment)
    assert (found.step_scale, found.alpha_scale, found.since) == (0.25, 0.5, 3)


def test_a_schedule_that_ends_with_the_run_is_kept_by_its_rounds(tmp_path: Path) -> None:
    cosine = 'strategy.gamma={kind="cosine",start=0.1,end=0.01}'
    experiment = opened(cosine)
    state = replace(experiment.method.start(experiment.problem.initial()), round=6)
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(
        of_standing(Standing(state), experiment=digest_of(experiment.config), seats={}, present=1, wall_s=0.0)
    )
    with pytest.raises(
        ConfigError, match=r"another experiment.*; with more rounds, write the K of schedules as it was"
    ):
        checkpoints.newest(opened(cosine, "strategy.rounds=99"))
    kept = cosine.replace("}", ",rounds=8}")
    assert checkpoints.newest(opened(kept, "strategy.rounds=99"))[0].round == 5


def test_without_any_checkpoint_the_run_begins_again(tmp_path: Path) -> None:
    experiment = opened()
    found, state = Checkpoints(tmp_path, keep=3).newest(experiment)
    assert (found.round, found.seats, found.present, state.round) == (0, {}, 0, 1)


def test_a_run_without_one_whole_checkpoint_is_not_begun_again_unasked(tmp_path: Path) -> None:
    experiment, checkpoints = saved(tmp_path, 5, 10)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match="none of the 2 checkpoints is whole; remove them to start anew"):
        checkpoints.newest(experiment)


def test_another_experiment_is_refused_but_more_rounds_and_patience_are_not(tmp_path: Path) -> None:
    _, checkpoints = saved(tmp_path, 5)
    later = ("strategy.rounds=99", "federation.deadline_s=3.0", "evaluation.every=7", "federation.join_timeout_s=9.0")
    assert checkpoints.newest(opened(*later))[0].round == 5
    for change in ("federation.seed=9", "strategy.gamma=0.2", "federation.quorum=0.5", "attack.kind=bf"):
        with pytest.raises(ConfigError, match=r"is of another experiment: what changes the models .* must stay"):
            checkpoints.newest(opened(change))


def test_a_run_does_not_go_on_with_other_data(tmp_path: Path) -> None:
    experiment = opened()
    state, mine = experiment.method.start(experiment.problem.initial()), experiment.identity
    checkpoints = Checkpoints(tmp_path, keep=3)

    def keep(task: str) -> None:
        known = {"experiment": digest_of(experiment.config), "seats": {}, "present": 1, "wall_s": 2.0}
        checkpoints.save(of_standing(Standing(replace(state, round=6)), **known, task=task))  # type: ignore[arg-type]  # as named

    keep(mine.written())
    assert checkpoints.newest(experiment)[0].round == 5
    keep(replace(mine, samples="7", files="own.py:0123456789").written())
    with pytest.raises(ConfigError) as error:
        checkpoints.newest(experiment)
    assert f"is of another task: the training data differ: {mine.samples} rows now, 7 in the checkpoint" in str(
        error.value
    )
    keep("")  # of an earlier version
    assert checkpoints.newest(experiment)[0].round == 5


def test_what_a_crash_leaves_is_cleared_and_so_is_what_will_be_run_again(tmp_path: Path) -> None:
    _, checkpoints = saved(tmp_path, 5, 10, 15)
    for name in (".00000020.safetensors", ".tmpAbC123"):
        (tmp_path / "checkpoints" / name).write_text("half")
    checkpoints.forget_after(10)
    assert names(tmp_path) == ["00000005.safetensors", "00000010.safetensors"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 5)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("foundation.files._sync", full)
    with pytest.raises(OSError, match="No space"):
        saved(tmp_path, 10)
    assert names(tmp_path) == ["00000005.safetensors"]


def test_there_is_no_pickle_in_it(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    raw = (tmp_path / "checkpoints" / "00000005.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    arrays = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    assert len(raw) == 8 + length + sum(end - begin for begin, end in (t["data_offsets"] for t in arrays.values()))
    assert {tensor["dtype"] for tensor in arrays.values()} == {"F32"}


# --- states -----------------------------------------------------------------------------------------------------------


def test_a_state_of_another_method_or_model_is_refused() -> None:
    momentum, dasha = (opened(*METHODS[name]) for name in ("momentum", "dasha"))
    x0 = momentum.problem.initial()
    data, arrays = take_apart(momentum.method.start(x0))
    with pytest.raises(StateError, match="but a EstimatesState has"):
        put_together(dasha.method.start(x0), data, arrays)
    with pytest.raises(StateError, match=r"array 0 has \(650,\) float32, but a model \(3,\) float32"):
        put_together(momentum.method.start(x0[:3]), data, arrays)
    with pytest.raises(StateError, match="lacks the model or the round"):
        put_together(momentum.method.start(x0), {**data, "x": None}, {})
    with pytest.raises(StateError, match="is not as it was written"):
        put_together(momentum.method.start(x0), {**data, "x": {"array": "7"}}, arrays)
    with pytest.raises(StateError, match="which no state has"):
        put_together(momentum.method.start(x0), {**data, "g": {"code": "exit()"}}, arrays)


def test_what_cannot_be_written_down_is_an_error_and_not_a_pickle() -> None:
    experiment = opened()
    state = experiment.method.start(experiment.problem.initial())
    with pytest.raises(StateError, match="a set cannot be written down"):
        take_apart(replace(state, report={1, 2}))


# --- what a worker knew -----------------------------------------------------------------------------------------------


class Diary:
    """A memory that is one number."""

    def __init__(self) -> None:
        self.at: Page = 0

    def remember(self) -> StateDict:
        return {"at": self.at}

    def recall(self, pages: StateDict) -> None:
        self.at = pages["at"]


def follow(*asks: Any, kept: int = 3) -> Page:
    """Answer the rounds of (life, checkpoint, round); return what was known before the last of them."""
    rollback, diary = Rollback(kept), Diary()
    before: Page = 0
    for incarnation, checkpoint, round_ in asks:
        rollback.follow(CheckpointEpoch(incarnation, checkpoint), diary, round_)
        before, diary.at = diary.at, round_
    return before


@pytest.mark.parametrize(
    ("asks", "known"),
    [
        pytest.param([(1, 0, 1), (1, 0, 2), (1, 2, 3), (1, 2, 4), (2, 2, 3)], 2, id="back-to-the-newest"),
        pytest.param([(1, 0, 1), (1, 0, 2), (1, 2, 3), (1, 4, 5), (2, 2, 3)], 2, id="back-to-the-one-before"),
        pytest.param([(1, 0, 1), (1, 0, 2), (1, 4, 6), (2, 2, 4)], 2, id="a-checkpoint-that-it-never-heard-of"),
        pytest.param([(1, 0, 1), (1, 0, 2), (2, 4, 5)], 2, id="asked-for-nothing-since"),
        pytest.param([(1, 0, 1), (1, 0, 2), (2, 0, 1)], 0, id="back-to-the-beginning"),
        pytest.param([(1, 2, 3), (2, 2, 3), (2, 2, 4), (3, 2, 3)], 0, id="again-and-again"),
        pytest.param([(1, 0, 1), (1, 2, 3), (2, 2, 5), (2, 4, 6), (3, 4, 7)], 5, id="forward-in-the-next-life"),
        pytest.param([(5, 8, 9), (5, 8, 10)], 9, id="joined-late"),
        pytest.param([(1, 0, 1), (1, 0, 2), (2, 1, 2)], 1, id="stopped-in-the-middle-of-a-round"),
    ],
)
def test_a_worker_goes_back_to_what_it_knew(asks: list[tuple[int, int, int]], known: int) -> None:
    assert follow(*asks) == known


def test_a_worker_keeps_as_many_marks_as_the_server_keeps_checkpoints() -> None:
    rollback, diary = Rollback(3), Diary()
    for round_ in range(1, 100):
        diary.at = round_
        rollback.follow(CheckpointEpoch(1, round_), diary, round_)
    assert sorted(rollback._known) == [97, 98, 99]


def test_a_server_without_checkpoints_leaves_no_trail() -> None:
    rollback = Rollback(3)
    rollback.follow(None, Diary(), 1)
    assert rollback._known == {}


def test_the_mark_travels_with_the_ask() -> None:
    experiment = opened()
    ask = experiment.method.ask(experiment.method.start(experiment.problem.initial()), np.random.default_rng(0))
    assert codec.read_ask(codec.write_ask(ask)).epoch is None
    assert codec.read_ask(codec.write_ask(replace(ask, epoch=CheckpointEpoch(3, 50)))).epoch == CheckpointEpoch(3, 50)
    assert parse(TEXT).checkpoint.keep == 3


def test_a_course_keeps_every_measure_of_its_models() -> None:
    measured = Evaluation(0.5, 0.75, gap=0.125, trigger=0.25)
    course = course_of(*take_apart(Course(best=measured, good_measures=replace(measured, gap=None))))
    assert (course.best, course.good_measures) == (measured, replace(measured, gap=None))
