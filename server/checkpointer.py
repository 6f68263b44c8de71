"""The checkpoints of a run: when to write one, and where a run is resumed."""

import math
import time
from typing import Any

from rich.console import Console

from experiment.opened import Experiment
from link.transport import Transport
from server.run_folder.checkpoints import (
    Checkpoint,
    Checkpoints,
    course_together,
    digest_of,
    norm_stats_of,
    of_standing,
)
from server.run_folder.writer import RunFolder
from strategies.method import CheckpointEpoch
from strategies.strategy import RobustStrategy, Standing

_SHARE = 0.02
"""How much of the time checkpoints may take, where the config does not say how often they are written."""
_SHORTEST_S = 1.0
"""Seconds between two of them at least, in that case."""


class Checkpointer:
    """The checkpoints of one run.

    Args:
        experiment: of the run.
        folder: its run folder.
        point: where it is resumed, and the method's state there; None for a new run.
        incarnation: how often a server was started for it, from 1; 0 where clients do not outlive the server and need
            not know.
        console: shows the user where it is resumed.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        point: tuple[Checkpoint, Any] | None,
        incarnation: int,
        console: Console,
    ) -> None:
        self.experiment = experiment
        self.folder = folder
        self.incarnation = incarnation
        self.console = console
        self.state: Any = None
        """The state to go on with; None for a new run."""
        self.present = 0
        """How many clients it had; 0 for a new run."""
        self.standing: Standing | None = None
        """All that the strategy goes on with; None for a new run."""
        settings = experiment.config.checkpoint
        self._every = settings.every
        self._written, self._took_s = -math.inf, 0.0  # when the last one was, and how long it took
        self._checkpoints = Checkpoints(folder.path, settings.keep)
        self._saved = -1
        if point is not None:
            checkpoint, self.state = point
            self.present, self._saved = checkpoint.present, checkpoint.round
            course = None if checkpoint.course is None else course_together(self.state, checkpoint)
            scales = checkpoint.step_scale, checkpoint.alpha_scale
            self.standing = Standing(self.state, course, *scales, checkpoint.since, norm_stats_of(checkpoint))
            self._checkpoints.forget_after(checkpoint.round)
            console.print(f"going on after round {checkpoint.round}", highlight=False)

    def due(self, round_: int) -> bool:
        """Return whether a checkpoint is to be written after this round."""
        if self._every is None:
            return time.monotonic() - self._written >= max(_SHORTEST_S, self._took_s / _SHARE)
        return self._every > 0 and round_ % self._every == 0

    def keep(self, transport: Transport, strategy: RobustStrategy) -> None:
        """Write a checkpoint of the last round in the metrics, unless there is one, and mark it for the workers."""
        folder = self.folder
        standing = strategy.standing_after(folder.rounds)
        if self._every == 0 or standing is None:
            return
        if folder.rounds != self._saved:
            checkpoint = of_standing(
                standing,
                experiment=digest_of(self.experiment.as_written),
                seats={seat.name: worker for worker, seat in transport.seats().items()},
                present=len(transport.nodes()),
                wall_s=folder.wall_s,
                task=self.experiment.identity.written(),
                agreement="" if self.experiment.agreement is None else self.experiment.agreement.to_json(),
            )
            began = time.monotonic()
            if folder.keep(self._checkpoints, checkpoint):
                self._saved = checkpoint.round
            self._written = time.monotonic()
            self._took_s = self._written - began
        if self.incarnation and self._saved >= 0:
            strategy.epoch = CheckpointEpoch(self.incarnation, self._saved)
