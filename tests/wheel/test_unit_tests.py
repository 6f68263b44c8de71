"""The fast unit tests, run against the installed wheel in a folder without our code."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.processes import ROOT
from tests.packages import PACKAGES
from tests.wheel.building import BUILD_S, OUTSIDE

pytestmark = [pytest.mark.wheel, pytest.mark.slow]

FILES_ABOUT_A_CHECKOUT = (
    *("test_architecture.py", "strategies/test_revisions.py", "foundation/test_former.py"),
    *("deploy/test_wheel.py", "deploy/test_install.py", "deploy/test_ci.py", "deploy/test_readme.py"),
)
"""Tests of the sources, which a wheel has changed, and of how a checkout is set up."""
ABOUT_A_CHECKOUT = ("fingerprint", "generated_module", "out_of_its_bounds_or_not_there", "bash_completes")
"""The same in other files: a part of the test's name."""


def test_the_fast_unit_tests_pass(beside: Callable[[str], Path], tmp_path: Path) -> None:
    place = beside("units")
    (site,) = place.parent.glob("lib/python*/site-packages")
    rooms = sorted(set(PACKAGES) - {"breakwater"})
    text = Path(__file__).with_name("renamed.py").read_text(encoding="utf-8")
    assert text.count("frozenset()") == 1
    (site / "renamed.py").write_text(text.replace("frozenset()", f"frozenset({rooms})"), encoding="utf-8")
    (site / "renamed.pth").write_text("import renamed\n", encoding="utf-8")
    shutil.copy2(Path(__file__).with_name("once.py"), site)
    no_caches = shutil.ignore_patterns("__pycache__", "wheel", "flower", "deployment")
    for name in ("tests", "examples", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=no_caches)
    for name in ("deploy/configs", "benchmarks/experiments"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy2(ROOT / name, tmp_path)
    left_out = [word for name in FILES_ABOUT_A_CHECKOUT for word in ("--ignore", f"tests/unit/{name}")]
    left_out += ["-k", "not " + " and not ".join(ABOUT_A_CHECKOUT)]
    command = [place / "python", "-m", "pytest", "-q", "-p", "once", "-n", "2", "--dist", "loadfile"]
    command += ["-m", "not slow", *left_out]
    words = [*map(str, command), "tests/unit"]
    done = subprocess.run(
        words, cwd=tmp_path, env=OUTSIDE, capture_output=True, text=True, timeout=BUILD_S, check=False
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2000:]
    assert " passed" in done.stdout.splitlines()[-1]
