"""``breakwater client --model FILE``: the final model, which the server sends to every party at the end of a run.

The file is written as the server writes its own, so that both are equal byte for byte.
"""

import logging
from pathlib import Path

import numpy as np
from flwr.app import RecordDict

from experiment.model_file import ModelForm, write_model
from foundation.errors import ConfigError, Unwritten
from foundation.files import replacing
from link import codec
from link.invitation import MODEL
from strategies.method import Vector
from tasks.contract import Problem

log = logging.getLogger("breakwater.client")


class ModelFile:
    """Where a client leaves the final model.

    Args:
        path: of the file.

    Raises:
        ConfigError: it cannot be written there; one line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written = False
        self._failure = ""
        if path.is_dir():
            raise ConfigError(f"--model {path}: is a folder; give the path of a file")
        try:
            with replacing(path.with_name(f".{path.name}.tried")) as draft:
                draft.touch()
            path.with_name(f".{path.name}.tried").unlink()
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(f"--model {path}: cannot be written: {reason}; give another file") from None

    def write(self, problem: Problem, x: Vector) -> None:
        """Write the model, and log it; a failure is logged too, and raised by ``check``."""
        try:
            write_model(self.path, x, ModelForm.of(problem))
        except OSError as error:
            self._failure = f"cannot be written: {error.strerror or error}"
            log.error("--model %s: %s", self.path, self._failure)
            return
        self.written = True
        log.info("the final model is in %s", self.path)

    def check(self) -> None:
        """Raise if the run is over and the model is not there.

        Raises:
            Unwritten: why, one line.
        """
        if not self.written:
            reason = self._failure or "the run ended, and the server sent this client no final model"
            raise Unwritten(f"--model {self.path}: {reason}; the server has it in its run folder")


def read_model_of(content: RecordDict, problem: Problem) -> Vector:
    """Return the final model that a message holds, shape (d,).

    Raises:
        WireError: it holds none.
        ConfigError: it is not a model of this task.
    """
    record = content.array_records.get(MODEL)
    if record is None or "x" not in record:
        raise ConfigError("the server's final model is missing in its message")
    x = codec.from_arrays(record)
    if x.shape != (problem.dim,) or x.dtype != problem.dtype or not np.isfinite(x).all():
        raise ConfigError(f"the server's final model is no finite vector of {problem.dim} {problem.dtype} numbers")
    return x
