"""Checks of the options that rules, pre-aggregators and compressors have."""

import math


def check_positive(**numbers: float | None) -> None:
    """Raise ValueError unless each number is above 0 and finite; None is left alone."""
    for name, number in numbers.items():
        if number is not None and not 0 < number < math.inf:
            raise ValueError(f"{name} = {number}: must be above 0 and finite")


def check_count(**counts: int | None) -> None:
    """Raise ValueError unless each count is at least 1; None is left alone."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} = {count}: must be at least 1")
