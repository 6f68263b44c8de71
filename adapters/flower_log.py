"""The log of a strategy, with the look of Flower's own: what it starts with, its rounds, its results."""

import logging
from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import Result

log = logging.getLogger("flwr.breakwater")

_MIB = 1 << 20


def show_warnings() -> None:
    """Let warnings of the strategies appear where Flower's log does, in an app that sets up no logging itself."""
    ours = logging.getLogger("breakwater")
    if not ours.hasHandlers():
        for handler in logging.getLogger("flwr").handlers:
            ours.addHandler(handler)


def log_start(
    name: str,
    num_rounds: int,
    arrays: ArrayRecord,
    train_config: ConfigRecord | None,
    evaluate_config: ConfigRecord | None,
) -> None:
    """Log what a run starts with."""
    log.info("Starting %s strategy:", name)
    log.info("\t├── Number of rounds: %d", num_rounds)
    log.info("\t├── ArrayRecord (%.2f MB)", sum(len(array.data) for array in arrays.values()) / _MIB)
    log.info("\t├── ConfigRecord (train): %s", _shown(train_config))
    log.info("\t├── ConfigRecord (evaluate): %s", _shown(evaluate_config))


def log_end(seconds: float, result: Result) -> None:
    """Log what a run has left."""
    log.info("")
    log.info("Strategy execution finished in %.2fs", seconds)
    log.info("")
    log.info("Final results:")
    log.info("")
    for line in str(result).splitlines():
        log.info("\t%s", line)
    log.info("")


def _shown(config: Mapping[str, Any] | None) -> str:
    if not config:
        return "(empty!)"
    shown = {key: "<bytes>" if isinstance(value, bytes) else value for key, value in config.items()}
    return "{" + ", ".join(f"'{key}': {value}" for key, value in shown.items()) + "}"
