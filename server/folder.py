"""The run folder: everything that a run leaves behind.

``config.toml`` as resolved, ``metrics.jsonl`` with one object a round, ``summary.json``, ``model.safetensors`` (from
the first evaluation on) and ``curve.png``. JSON has no NaN or infinity: such numbers are written as null, and a run
that diverged says so.
"""

import importlib.metadata
import json
import math
import platform
from collections import Counter
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors.numpy import save_file

from link.config import Config
from link.errors import ConfigError
from strategies.algorithm import Evaluation, Vector
from strategies.strategy import RoundRecord

METRICS, SUMMARY, MODEL, CURVE, CONFIG = (
    "metrics.jsonl",
    "summary.json",
    "model.safetensors",
    "curve.png",
    "config.toml",
)


class RunFolder:
    """Writes one run.

    Args:
        path: created with its parents; must not hold a run already.

    Raises:
        ConfigError: the folder cannot be used; the message names it and the mend.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            if (path / METRICS).exists():
                raise ConfigError(f"{path}: holds a run already; give --out another folder or remove it")
            self._metrics = (path / METRICS).open("w", encoding="utf-8", buffering=1)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}; give --out another folder") from None
        self._rounds = 0
        self._bytes_up = 0
        self._bytes_down = 0
        self._rejected: Counter[str] = Counter()
        self._start: Evaluation | None = None
        self._last: Evaluation | None = None

    def __enter__(self) -> Self:
        """Nothing to do yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close what is open."""
        self._metrics.close()

    def begin(self, config: Config, start: Evaluation) -> None:
        """Write the resolved config and keep the measure of x^0."""
        (self.path / CONFIG).write_text(config.to_toml(), encoding="utf-8")
        self._start = start

    def add(self, record: RoundRecord) -> None:
        """Append one round to the metrics."""
        self._rounds = record.round
        self._bytes_up += record.bytes_up
        self._bytes_down += record.bytes_down
        self._rejected.update(reason.partition(":")[0] for _, reason in record.rejected)
        line: dict[str, Any] = {
            "round": record.round,
            "kind": record.kind,
            "cohort": list(record.cohort),
            "accepted": list(record.accepted),
            "rejected": [{"client": name, "reason": reason} for name, reason in record.rejected],
            "clipped": list(record.clipped),
            "lam": _number(record.lam),
            "step_norm": _number(record.step_norm),
            "bytes_up": record.bytes_up,
            "bytes_down": record.bytes_down,
            "round_s": round(record.round_s, 6),
        }
        if record.resynced:
            line["resynced"] = list(record.resynced)
        if record.note:
            line["note"] = record.note
        if record.evaluation is not None:
            self._last = record.evaluation
            line |= _measures(record.evaluation)
        self._metrics.write(json.dumps(line) + "\n")

    def save(self, model: Vector) -> None:
        """Write the model, in one step: whoever reads it, or finds it after a crash, finds a whole one."""
        written = self.path / f".{MODEL}"
        save_file({"x": np.ascontiguousarray(model)}, written)
        written.replace(self.path / MODEL)

    def finish(self, *, status: str, seed: int, wall_s: float, joined_s: float, model: Vector | None) -> dict[str, Any]:
        """Write summary and model, and return the summary.

        Args:
            status: "finished", "diverged", "interrupted" or what ended the run.
            seed: the run's seed.
            wall_s: seconds from the first round to the last.
            joined_s: seconds before that, in which clients joined.
            model: the last model; None if there is none.
        """
        self._metrics.close()
        last = self._last or self._start
        summary: dict[str, Any] = {
            "status": status,
            "rounds": self._rounds,
            **(_measures(last) if last else {"loss": None, "accuracy": None}),
            "start": _measures(self._start) if self._start else None,
            "bytes_up": self._bytes_up,
            "bytes_down": self._bytes_down,
            "wall_s": round(wall_s, 3),
            "joined_s": round(joined_s, 3),
            "rejected": dict(self._rejected),
            "seed": seed,
            "versions": versions(),
        }
        if model is not None:
            self.save(model)
        (self.path / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        return summary


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    names = ("breakwater", "flwr", "grpcio", "numba", "numpy", "scipy", "torch")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """Return the rounds of a run folder, one dictionary each; a last line cut off by a crash is left out."""
    rounds = []
    for line in (folder / METRICS).read_text(encoding="utf-8").splitlines():
        try:
            rounds.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rounds


def _measures(evaluation: Evaluation) -> dict[str, float | None]:
    measures = {"loss": _number(evaluation.loss), "accuracy": _number(evaluation.accuracy)}
    return measures if evaluation.gap is None else measures | {"gap": _number(evaluation.gap)}


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
