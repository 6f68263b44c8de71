"""What is read from a run folder: its rounds, its summary and its model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiment.model_file import Model as Model
from experiment.model_file import read_model as read_model
from foundation.errors import ConfigError
from server.run_folder import METRICS, SUMMARY
from server.run_folder.record import from_line
from strategies.strategy import RoundRecord


def each_round(folder: Path) -> Iterator[RoundRecord]:
    """Yield the rounds of a run folder; a last line cut off by a crash is left out.

    Raises:
        ConfigError: there are none, or they cannot be read; one line.
    """
    path, names = folder / METRICS, dict[int, str]()
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    record = from_line(line, names)
                except ValueError as error:
                    raise ConfigError(f"{path}: is not the metrics of a run: line {number}: {error}") from None
                yield record
    except FileNotFoundError:
        raise ConfigError(f"{folder}: no run is there ({METRICS} is missing)") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_rounds(folder: Path) -> list[RoundRecord]:
    """Return the rounds of a run folder all at once, see ``each_round``."""
    return list(each_round(folder))


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a run folder; None where there is none that can be read."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None
