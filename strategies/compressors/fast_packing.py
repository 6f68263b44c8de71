"""The loops of packing.py, choices.py, coordinates.py and carriers for long float32 vectors, compiled by numba.

Each gives the same result, to the last bit, as the NumPy it stands for; tests/reference compares them. Only
``packing.load_loops`` imports this module, because importing numba takes most of a second. Compiled code is kept beside
the files (``__pycache__``), or in numba's own folder, so only the first process on a machine compiles.
"""

from strategies.compressors import fast_choice, fast_largest, fast_reading, fast_rounding
from strategies.compressors.fast_choice import mask, permuted, places, put, put_at, take, take_at  # noqa: F401
from strategies.compressors.fast_largest import largest  # noqa: F401
from strategies.compressors.fast_reading import (  # noqa: F401  # for who calls the loops
    exceeds,
    furthest,
    most,
    peak,
    read_codes,
    read_half,
    read_packed,
    read_powers,
)
from strategies.compressors.fast_rounding import (  # noqa: F401
    dither_codes,
    dither_packed,
    half_codes,
    power_codes,
    signs_packed,
    sum_of,
)


def prepare() -> None:
    """Compile all loops, or load them."""
    for loops in (fast_rounding, fast_reading, fast_choice, fast_largest):
        loops.prepare()
