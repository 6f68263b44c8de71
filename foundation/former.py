"""Former names of modules that users' files may import: they work for one release, and say what they are now."""

import warnings


def moved(old: str, new: str) -> None:
    """Warn whoever imports the module ``old`` that it is ``new`` now."""
    warnings.warn(f"{old} is now {new}; the old name goes with the next release", FutureWarning, stacklevel=3)
