"""What tests read of a run folder."""

from pathlib import Path

from server.run_folder.reader import read_model
from strategies.method import Vector


def x_of(folder: Path) -> Vector:
    """Return the model of a run as one vector."""
    x = read_model(folder).x
    assert x is not None
    return x
