"""Configs that ship, cut to a few rounds."""

from dataclasses import asdict, is_dataclass
from pathlib import Path

from experiment.config import load


def schedule_within(path: Path) -> list[str]:
    """Return the change that lets a config's schedule, if it has one, rise in a single round; none else."""
    gamma = load(path).strategy.gamma
    if not is_dataclass(gamma) or isinstance(gamma, type):
        return []
    values = {name: value for name, value in {**asdict(gamma), "warmup": 1}.items() if value is not None}
    table = ", ".join(
        f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}" for name, value in values.items()
    )
    return [f"strategy.gamma={{{table}}}"]
