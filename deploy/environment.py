"""Neutralises environment variables that could break a run, before anything heavy is imported."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from foundation import origin


def settle() -> None:
    """Change the environment of this process, and of those that it starts, so that nothing in it breaks a run."""
    # gRPC writes a line to standard error for every failed handshake, and any peer can cause one. It reads this when it
    # is imported, which is later.
    os.environ.setdefault("GRPC_VERBOSITY", "none")
    # A custom task may fork processes that fetch samples, after a connection is open. They do not use gRPC, whose own
    # handlers of forks end them by a segmentation fault (grpcio 1.85.1).
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    os.environ["MPLBACKEND"] = "agg"  # we draw into files alone
    for name in ("COLUMNS", "LINES", "NUMBA_NUM_THREADS"):  # a terminal of width 0 shows no result
        if not os.environ.get(name, "1").strip().lstrip("0").isdecimal():
            del os.environ[name]
    _warn_only()


def _warn_only() -> None:
    """Keep warnings of libraries from ending a run where Python turns warnings into errors."""
    if not any(option.startswith("error") for option in sys.warnoptions):
        return
    sys.warnoptions[:] = [_milder(option) for option in sys.warnoptions]
    if os.environ.get("PYTHONWARNINGS"):
        os.environ["PYTHONWARNINGS"] = ",".join(map(_milder, os.environ["PYTHONWARNINGS"].split(",")))
    filters = [("default", *entry[1:]) if entry[0] == "error" else entry for entry in warnings.filters]
    warnings.filters[:] = filters  # type: ignore[index]  # it is a list


def _milder(option: str) -> str:
    action, colon, rest = option.partition(":")
    return f"default{colon}{rest}" if action.strip() and "error".startswith(action.strip().lower()) else option


def with_ours_first() -> dict[str, str]:
    """Return the environment variables with which a Python process finds our packages, and no others of their names."""
    # Those of a wheel lie below one package that nobody else has, and beside much that others have.
    ours = str(origin.ROOT) if origin.manifest() is None else ""
    path = os.pathsep.join(filter(None, (ours, os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


@contextmanager
def ours_first() -> Iterator[None]:
    """Within: Python processes that are started find our packages, and no others that lie in the current folder."""
    changes = with_ours_first()
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
