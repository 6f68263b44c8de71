"""The folders that a run is given: where its data sets are, and where it writes."""

import os
import time
from itertools import count
from pathlib import Path

from foundation.errors import ConfigError
from server.run_folder import METRICS


def data_folder(given: Path | str | None, recorded: str | None = None, *, option: str) -> Path | None:
    """Return the folder of the data sets: the given one, else ``recorded``, else BREAKWATER_DATA, else None.

    Args:
        given: by the user.
        recorded: the data folder of a run that is resumed.
        option: how the user gives it, for messages.

    Raises:
        ConfigError: the folder does not exist.
    """
    chosen = given or recorded or os.environ.get("BREAKWATER_DATA")
    if not chosen:
        return None
    path = Path(chosen).resolve()
    if not path.is_dir():
        source = option if given else "the run's data folder" if recorded else "BREAKWATER_DATA"
        fix = f"; give another with {option} DIR" if recorded and not given else ""
        raise ConfigError(f"{source} {chosen}: no such folder{fix}")
    return path


def new_folder(given: Path | str | None, name: str, *, option: str) -> Path:
    """Return the run folder: the given one, else ``runs/NAME-TIME``. It need not exist yet.

    Args:
        given: by the user.
        name: of the experiment.
        option: how the user gives the folder, for messages.

    Raises:
        ConfigError: it exists and is not an empty folder, or cannot be read.
    """
    if given is None:
        wanted = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        others = (wanted.with_name(f"{wanted.name}-{number}") for number in count(2))
        return wanted if not wanted.exists() else next(other for other in others if not other.exists())
    out = Path(given)
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise ConfigError(f"{option} {out}: cannot be used: {error.strerror or error}; choose another folder") from None
    if taken:
        raise ConfigError(f"{option} {out}: exists and is not an empty folder; choose another one or remove it")
    return out


def remove_unused(out: Path) -> None:
    """Remove the folder of a run that never began, so that its name can be used again; any other stays as it is.

    Such a folder has an empty folder of logs, and perhaps an empty file of metrics.

    Raises:
        OSError: it cannot be removed.
    """
    logs, metrics = out / "logs", out / METRICS
    found = set(out.rglob("*"))
    if logs not in found or not found <= {logs, metrics} or (metrics in found and metrics.stat().st_size):
        return
    metrics.unlink(missing_ok=True)
    logs.rmdir()
    out.rmdir()
