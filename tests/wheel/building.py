"""How the tests build the wheel, and call uv."""

import os
import subprocess
import sys
from pathlib import Path

from tests.integration.processes import ROOT

BUILD_S = 600.0
"""A bound for what takes seconds, once uv has the packages."""
OUTSIDE = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}


def uv(*arguments: str | Path) -> None:
    """Run a command of uv; fail with what it says."""
    command = [sys.executable, "-m", "uv", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S, check=False, env=OUTSIDE)
    assert done.returncode == 0, f"{command}: {done.stderr}"


def built(out: Path) -> Path:
    """Return the wheel of this checkout, built by way of the source distribution, as a release is."""
    uv("build", "--no-build-isolation", "--out-dir", out, ROOT)
    (found,) = out.glob("*.whl")
    return found
