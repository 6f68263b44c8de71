"""The commands of docs/install.md: a wheel is built, installed where its dependencies are, and used."""

import json
import os
import re
import subprocess
import sysconfig
import tomllib
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, Block, blocks_of
from tests.docs.test_pages import checkout

PAGE = "docs/install.md"
pytestmark = [pytest.mark.wheel, pytest.mark.slow]
HERE = "tests/wheel/test_install_page.py::test_a_wheel_from_the_page_is_installed_and_used"


def typed(block: Block, folder: Path, environment: Path, **variables: str) -> str:
    """Type a block in a folder, with an environment activated; return what it printed."""
    env = {**os.environ, "PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = ["bash", "-euc", block.text]
    ended = subprocess.run(command, cwd=folder, env=env | variables, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{block}: {ended.stdout}{ended.stderr}"
    return ended.stdout


def test_a_wheel_from_the_page_is_installed_and_used(tmp_path: Path) -> None:
    environment, tree = tmp_path / "environment", tmp_path / "tree"
    venv.create(environment, with_pip=True)
    # The dependencies are those of this environment; a path in a .pth file does not bring the editable install with it.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    tree.mkdir()
    checkout(tree)
    build, install, use = (block for block in blocks_of(PAGE) if block.words == (HERE,))
    typed(build, tree, environment)
    typed(install, tree, environment, PIP_NO_DEPS="1")
    output = typed(use, tmp_path, environment)
    assert "wheel        as built" in output
    assert output.splitlines()[-1] == "CoordinateMedian(kind='cm', pre=())"
    where = "import breakwater, json; print(json.dumps(breakwater.__path__))"
    python = environment / "bin" / "python"
    ended = subprocess.run([python, "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout) == [str(site / "breakwater")]


def test_the_page_lists_all_extras_for_users() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(extras) - {"docs", "dev", "fuzz"}
    assert distribution("breakwater").metadata["Requires-Python"] == ">=3.11"
    assert "All need Python 3.11 or newer" in page
