"""Former names of modules that users' files may import: they work for one release, with a warning."""

import warnings


def moved(old: str, new: str) -> None:
    """Warn that the module ``old`` is now ``new``."""
    warnings.warn(f"{old} is now {new}; the old name goes with the next release", FutureWarning, stacklevel=3)
