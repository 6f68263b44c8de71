"""`flwr build`: the Flower App Bundle holds what a node needs, and nothing else."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flower.environments import NEWEST, OLDEST, environment
from tests.flower.harness import QUIET
from tests.integration.processes import ROOT, Processes
from tests.packages import PACKAGES

pytestmark = [pytest.mark.flower, pytest.mark.slow]

LAYERS = set(PACKAGES) - {"deploy"}


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_the_bundle_holds_the_code_the_configs_and_the_examples(
    processes: Processes, installed: Callable[[str], str], app: Path, tmp_path: Path, version: str
) -> None:
    commands = environment(installed(version))
    settings = [f"{key}={value}" for key, value in {**QUIET, "FLWR_HOME": str(tmp_path / "home")}.items()]
    build = processes.start("env", "-C", tmp_path, *settings, commands / "flwr", "build", "--app", app)
    build.ends(0)
    (bundle,) = tmp_path.glob("*.fab")
    assert re.fullmatch(r"breakwater\.breakwater\.[0-9-]+\.[0-9a-f]{8}\.fab", bundle.name)
    with zipfile.ZipFile(bundle) as archive:
        names = set(archive.namelist())
        for name in names & {"link/wire.py", "deploy/configs/flower.toml"}:
            assert archive.read(name) == (ROOT / name).read_bytes()

    code = {path.relative_to(app).as_posix() for layer in LAYERS for path in (app / layer).rglob("*.py")}
    configs = {path.relative_to(app).as_posix() for path in (app / "deploy" / "configs").glob("*.toml")}
    examples = {path.relative_to(app).as_posix() for path in (app / "examples").glob("*.py")}
    assert code | configs | examples <= names
    others = names - code - configs - examples
    assert {name for name in others if not name.startswith("examples/")} <= {
        "pyproject.toml",
        "LICENSE",
        "README.md",
        ".info/CONTENT",
    }
