"""One Python environment for each Flower version that the tests run on, built once and kept outside the checkout.

They hold Flower with its simulation, our base dependencies and what watches a run, as a SuperLink's machine has them;
no torch, no developer's tools, and not us: Flower brings the app itself, as a bundle.
"""

import fcntl
import hashlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.processes import ROOT

BUILD_S = 600.0
"""A bound for what takes seconds, once uv has the packages."""


class UnavailableError(Exception):
    """An environment cannot be built here."""


def _requirements() -> list[str]:
    """Return what pyproject.toml asks of every machine, and of one whose run TensorBoard or Prometheus watch."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    requirements: list[str] = [*project["dependencies"], *project["optional-dependencies"]["monitor"]]
    return requirements


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0]


NUMBERS = ("numpy", "numba", "scipy", "scikit-learn")
"""What decides the bits of a run: the same here as where the live link runs. Of the rest Flower has its own idea."""


def _pins(*names: str) -> list[str]:
    """Return the lines of constraints.txt that pin these packages."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if _name(line) in names]


def _oldest() -> str:
    """Return the lowest Flower version that pyproject.toml allows."""
    (found,) = (re.match(r"flwr>=([0-9.]+)", line) for line in _requirements() if line.startswith("flwr"))
    assert found, "pyproject.toml bounds flwr from below first"
    return found[1] if found[1].count(".") == 2 else f"{found[1]}.0"


def _newest() -> str:
    """Return the Flower version of constraints.txt: the newest that installs, as of `make constraints`."""
    (pin,) = _pins("flwr")
    return pin.removeprefix("flwr==")


OLDEST, NEWEST = _oldest(), _newest()


def environment(version: str, *, bare: bool = False) -> Path:
    """Return the folder of the commands of an environment with this Flower, built if need be.

    Args:
        version: of Flower.
        bare: Flower alone, without its simulation and what we depend on: built in a tenth of the time.

    Raises:
        UnavailableError: it cannot be built here; the message says why.
        RuntimeError: it cannot be built anywhere: our dependencies and this Flower's contradict each other.
    """
    pins = _pins(*NUMBERS)
    if bare:
        wanted = [f"flwr=={version}"]
    else:
        wanted = [f"flwr[simulation]=={version}", *(r for r in _requirements() if not r.startswith("flwr"))]
    digest = hashlib.sha256("\n".join([sys.version, *wanted, *pins]).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "breakwater-tests"
    folder = cache / f"flwr-{version}-{digest}"
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache / f"{folder.name}.lock"):
        if not (folder / "complete").exists():
            constraints = cache / f"{folder.name}.txt"
            constraints.write_text("\n".join(pins), encoding="utf-8")
            _uv("venv", "--clear", "--python", sys.executable, folder)
            install: list[str | Path] = ["pip", "install", "--python", folder / "bin" / "python"]
            if not bare:
                install.append("--compile-bytecode")  # or ten processes at once would compile it
            _uv(*install, "--constraint", constraints, *wanted)
            (folder / "complete").touch()
    return folder / "bin"


def _uv(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "uv", *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S, check=False)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"no environment within {BUILD_S:g} s: {' '.join(command)}") from None
    if "No solution found" in done.stderr:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    if done.returncode:
        raise UnavailableError(f"{' '.join(command)}: {done.stderr.strip()}")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let no other test run in meanwhile: two may want the same environment at once."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
