"""The wheel, built once, and environments that it is installed in."""

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.processes import ROOT
from tests.wheel.building import BUILD_S, OUTSIDE, built, uv

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    return built(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment that holds the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    uv("venv", "--python", sys.executable, folder)
    uv("pip", "install", "--python", folder / "bin" / "python", "--constraint", ROOT / "constraints.txt", wheel)
    return folder / "bin"


@pytest.fixture(scope="session")
def beside(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make an environment with the wheel alone, which finds all else where this one has it; return its commands."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp("environment") / name
        uv("venv", "--python", sys.executable, folder)
        uv("pip", "install", "--python", folder / "bin" / "python", "--no-deps", wheel)
        (site,) = folder.glob("lib/python*/site-packages")
        # A line of a .pth file is a folder; the .pth files in that, of the editable install, are not read.
        (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        return folder / "bin"

    return make


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder with files and folders of the names that ours have, which must not be imported."""
    folder = tmp_path / "elsewhere"
    decoys = ["server.py", "link.py", "tasks.py", "client/__init__.py", "strategies/__init__.py", "deploy/__init__.py"]
    for name in decoys:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('raise SystemExit("a decoy was imported")\n', encoding="utf-8")
    return folder


@pytest.fixture
def run(elsewhere: Path) -> Run:
    """Run a command there to its end; it must succeed."""

    def ended(*command: str | Path, status: int = 0) -> "subprocess.CompletedProcess[str]":
        words = [str(word) for word in command]
        done = subprocess.run(
            words, cwd=elsewhere, env=OUTSIDE, capture_output=True, text=True, timeout=BUILD_S, check=False
        )
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return ended
