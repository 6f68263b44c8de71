"""Checkpoints: all that a server needs to go on after a crash. A damaged file is not used.

Each is one safetensors file in the run folder's ``checkpoints/``, named by its round: the vectors of the method's state
as arrays, everything else as JSON in the header, with a SHA-256 over both. It is written beside its place and moved
there, so that a crash leaves the one before it. There is no pickle in it, and nothing of it is executed.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from experiment.config import Config
from experiment.model_file import write_arrays
from experiment.opened import Experiment
from foundation.errors import ConfigError
from foundation.files import DRAFTS, replacing
from server.run_folder.state_dict import StateError, course_of, put_together, take_apart
from strategies.batch_statistics import NormStats
from strategies.safeguard import Course
from strategies.strategy import Standing
from tasks.identity import TaskIdentity

log = logging.getLogger("breakwater.server")

CHECKPOINTS = "checkpoints"
"""The folder, in the run folder."""
COURSE, GOOD = "course/", "good/"
"""Before the names of the arrays of a course, and of the state that it goes back to."""
NORM_STATS = "norm/stats"
"""Name of the array of running statistics that clients have answered."""
_FORMAT = 1
_SUFFIX = ".safetensors"
_KEY = "breakwater"
_DIGEST = "sha256"


class DamagedCheckpointError(Exception):
    """A file is not a checkpoint of ours, or damaged; the message does not name the file."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The run after one of its rounds.

    Args:
        round: r; 0 before the first.
        experiment: digest of the resolved config, see ``digest_of``.
        seats: worker by client name: who has which seat.
        present: how many clients were connected.
        wall_s: seconds spent in rounds so far.
        state: the method's state as plain data, see ``server.run_folder.state_dict``.
        arrays: its arrays.
        task: what was loaded, see ``tasks.identity``; "" where that is not known.
        agreement: what was agreed on with clients that have their own data, as JSON; "" for nothing.
        step_scale: of the strategy.
        alpha_scale: of the strategy.
        since: of the strategy.
        course: of the strategy as plain data; its arrays are among ``arrays``, under ``COURSE`` and ``GOOD``. None
            where it has none.
        norm_stats: the round of the running statistics, which are among ``arrays`` as ``NORM_STATS``; None where there
            are none.
    """

    round: int
    experiment: str
    seats: Mapping[str, int]
    present: int
    wall_s: float
    state: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    task: str = ""
    agreement: str = ""
    step_scale: float = 1.0
    alpha_scale: float = 1.0
    since: int = 0
    course: Mapping[str, Any] | None = None
    norm_stats: int | None = None


def clear_drafts(folder: Path) -> None:
    """Remove what a crash has left half written: our drafts, those of older versions and of the safetensors library."""
    for draft in (*folder.glob(DRAFTS), *folder.glob(f".*{_SUFFIX}"), *folder.glob(".tmp??????")):
        draft.unlink()


def of_standing(
    standing: Standing,
    *,
    experiment: str,
    seats: Mapping[str, int],
    present: int,
    wall_s: float,
    task: str = "",
    agreement: str = "",
) -> Checkpoint:
    """Return the checkpoint of a run, whose vectors must not be modified any more; methods never do."""
    state, course, step_scale, alpha_scale, since, norm_stats = standing
    (plain, arrays), noted = take_apart(state), None
    if course is not None:
        values, of_course = take_apart(replace(course, good=None))
        good, of_good = (None, {}) if course.good is None else take_apart(course.good)
        noted = {"values": values, "good": good}
        for head, more in ((COURSE, of_course), (GOOD, of_good)):
            arrays |= {f"{head}{name}": array for name, array in more.items()}
    if norm_stats is not None:
        arrays[NORM_STATS] = norm_stats.values
    return Checkpoint(
        round=state.round - 1,
        experiment=experiment,
        seats=seats,
        present=present,
        wall_s=wall_s,
        state=plain,
        arrays=arrays,
        task=task,
        agreement=agreement,
        step_scale=step_scale,
        alpha_scale=alpha_scale,
        since=since,
        course=noted,
        norm_stats=None if norm_stats is None else norm_stats.round,
    )


def course_together(state: Any, checkpoint: Checkpoint) -> Course | None:
    """Return the course that a checkpoint holds; None where it has none.

    Args:
        state: of the method, with the model's length and type.
        checkpoint: which has been checked.

    Raises:
        StateError: it is none of this method.
    """
    if (noted := checkpoint.course) is None:
        return None
    course = course_of(noted["values"], _under(COURSE, checkpoint.arrays))
    if noted["good"] is None:
        return course
    return replace(course, good=put_together(state, noted["good"], _under(GOOD, checkpoint.arrays)))


def norm_stats_of(checkpoint: Checkpoint) -> NormStats | None:
    """Return the running statistics that a checkpoint holds; None where it has none."""
    return None if checkpoint.norm_stats is None else NormStats(checkpoint.arrays[NORM_STATS], checkpoint.norm_stats)


def _under(head: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(head): array for name, array in arrays.items() if name.startswith(head)}


def digest_of(config: Config) -> str:
    """Return a digest of a resolved config: two with the same digest have the same trajectory."""
    return hashlib.sha256(json.dumps(config.trajectory_terms(), sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        run_folder: the run's.
        keep: how many of the newest are kept.
    """

    def __init__(self, run_folder: Path, keep: int) -> None:
        self.path = run_folder / CHECKPOINTS
        self._keep = keep

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, and remove those beyond the number that is kept.

        Raises:
            OSError: it cannot be written; the others are as before.
        """
        self.path.mkdir(exist_ok=True)
        with replacing(self._place(checkpoint.round), durable=True) as draft:
            _write(draft, checkpoint)
        for old in sorted(self._rounds())[: -self._keep]:
            self._place(old).unlink(missing_ok=True)

    def newest(self, experiment: Experiment) -> tuple[Checkpoint, Any]:
        """Return the newest checkpoint that is whole, and the method's state; those that are damaged are reported.

        Where there is none at all, the run was killed before its first round: what it begins with is returned.

        Args:
            experiment: of the run.

        Raises:
            ConfigError: none of them is whole, or they are of another experiment.
        """
        digest, start = digest_of(experiment.as_written), experiment.method.start(experiment.problem.initial())
        rounds = sorted(self._rounds(), reverse=True)
        for round_ in rounds:
            place = self._place(round_)
            try:
                found = _read(place)
                before = TaskIdentity.parse(found.task)
                other = experiment.identity.differences(before, "now", "in the checkpoint")
                if found.experiment == digest and not other:
                    for what in experiment.identity.roundings(before):
                        log.warning("%s is not the same to the last bit as when the run began", what)
                    own = {name: array for name, array in found.arrays.items() if "/" not in name}
                    state = put_together(start, found.state, own)
                    course_together(state, found)  # it must be whole too
                    return found, state
            except (DamagedCheckpointError, StateError) as error:
                why = "no state of this method: " if isinstance(error, StateError) else ""
                log.error("%s: %s%s; going back to the one before it", place, why, error)
            else:
                fix = "give the same data (--data FOLDER) and task file as before"
                if found.experiment != digest:
                    other = ["what changes the models (task, method, seed, ...) must stay as it was"]
                    fix = "only rounds, evaluation, checkpoint and time-outs may change"
                    if experiment.config.safeguard is not None:
                        fix = fix.replace("evaluation", "evaluation.stop")  # the rest decides when the run goes back
                    if any(getattr(value, "rounds", None) for value in dict(experiment.config.strategy).values()):
                        fix += "; with more rounds, write the K of schedules as it was: strategy.gamma.rounds"
                what = "task" if found.experiment == digest else "experiment"
                raise ConfigError(f"{place}: is of another {what}: {'; '.join(other)}; {fix}")
        if rounds:
            raise ConfigError(f"{self.path}: none of the {len(rounds)} checkpoints is whole; remove them to start anew")
        return of_standing(Standing(start), experiment=digest, seats={}, present=0, wall_s=0.0), start

    def forget_after(self, round_: int) -> None:
        """Remove the checkpoints of later rounds, which will be run again, and what a crash has left half written.

        Raises:
            ConfigError: the folder cannot be written.
        """
        try:
            clear_drafts(self.path)
            for later in self._rounds():
                if later > round_:
                    self._place(later).unlink()
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be written: {error.strerror}") from None

    def _place(self, round_: int) -> Path:
        return self.path / f"{round_:08d}{_SUFFIX}"

    def _rounds(self) -> list[int]:
        return [int(path.stem) for path in self.path.glob(f"[0-9]*{_SUFFIX}") if path.stem.isdecimal()]


@lru_cache(maxsize=1)
def resumed(run_folder: Path, experiment: Experiment) -> tuple[Checkpoint, Any]:
    """Return where a run is resumed; see ``Checkpoints.newest``. Who listens and who trains get the same."""
    return Checkpoints(run_folder, keep=1).newest(experiment)


def _write(draft: Path, checkpoint: Checkpoint) -> None:
    header = {each.name: getattr(checkpoint, each.name) for each in fields(checkpoint) if each.name != "arrays"}
    text = json.dumps({"format": _FORMAT, **header, "seats": dict(checkpoint.seats)})
    write_arrays(checkpoint.arrays, draft, {_KEY: text, _DIGEST: _digest(text, checkpoint.arrays)})


def _read(place: Path) -> Checkpoint:
    """Read and check a file.

    Raises:
        DamagedCheckpointError: it is not whole, or not ours.
    """
    try:
        with safe_open(place, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dictionary
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise DamagedCheckpointError(f"cannot be read: {error}") from error
    text = metadata.get(_KEY, "")
    if _digest(text, arrays) != metadata.get(_DIGEST):
        raise DamagedCheckpointError("its checksum is wrong")
    header = json.loads(text)  # as it was written, by the checksum
    if (form := header.pop("format")) != _FORMAT:
        raise DamagedCheckpointError(f"is of format {form}, this version reads {_FORMAT}")
    return Checkpoint(arrays=arrays, **header)


def _digest(text: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()
