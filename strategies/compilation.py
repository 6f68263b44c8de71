"""How loops are compiled. Importing it imports numba, which takes most of a second: only modules of loops do."""

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(loop: Callable[..., Any]) -> Any:
    """Compile a loop at its first call, and keep the result on disk: beside its file, or in the user's cache folder."""
    try:
        return njit(cache=True, nogil=True, error_model="numpy")(loop)
    except RuntimeError:  # neither can be written, as in a locked-down container
        return njit(nogil=True, error_model="numpy")(loop)


def inlined(**options: Any) -> Any:
    """Compile a function that only loops call: into them, and with no entrance from Python."""
    options |= {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # which numba's types do not know
    return njit(nogil=True, error_model="numpy", **options)
