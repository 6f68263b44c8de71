"""A run that is interrupted after a round has ended and before it is written: folder and checkpoint agree."""

from pathlib import Path

import pytest

from deploy.inprocess import grid_of
from experiment.config import parse
from experiment.opened import open_config
from server.monitor.exporters import Monitoring
from server.run import run
from server.run_folder.checkpoints import resumed
from server.run_folder.reader import read_rounds
from server.run_folder.writer import RunFolder
from strategies.strategy import RobustStrategy

TEXT = """
[federation]
clients = 3
[task]
kind = "digits"
[strategy]
kind = "robust-sgd"
rounds = 9
gamma = 0.1
batch = 8
[checkpoint]
every = 4
"""


@pytest.mark.parametrize("lost", [1, 2, 6])
def test_the_round_that_nobody_has_written_down_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    experiment = open_config(parse(TEXT))

    def interrupted(strategy: RobustStrategy, x: object) -> str:
        if strategy.state.round - 1 == lost:
            raise KeyboardInterrupt
        return ""

    monkeypatch.setattr(RobustStrategy, "flaw_of_model", interrupted)
    with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path, None) as folder:
        run(experiment, folder, grid_of(experiment), Monitoring(quiet=True, pictures=False))
    assert len(read_rounds(tmp_path)) == lost - 1
    checkpoint, state = resumed(tmp_path, experiment)
    assert (checkpoint.round, state.round) == (lost - 1, lost)
