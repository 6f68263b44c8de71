"""The project runs from its checkout: nothing of ours lies in site-packages, and what must start fast loads little."""

import importlib.metadata
import subprocess
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from tests.packages import PACKAGES, ROOT

HEAVY = ["flwr", "grpc", "torch", "sklearn", "scipy", "numpy", "pydantic", "matplotlib", "rich"]


def modules_after(code: str) -> set[str]:
    """The names of the top-level modules that are in memory after some code."""
    script = f"{code}\nimport sys\nprint('modules', *{{name.partition('.')[0] for name in sys.modules}})"
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(ended.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_resolves_inside_the_checkout(package: str) -> None:
    spec = PathFinder.find_spec(package, [path for path in sys.path if path] or None)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).parent == ROOT / package


def test_from_anywhere_too(tmp_path: Path) -> None:
    """As the ``breakwater`` command does it, whose working folder may be any."""
    code = f"import importlib.util as u; print(*(u.find_spec(name).origin for name in {PACKAGES!r}), sep='\\n')"
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == [str(ROOT / package / "__init__.py") for package in PACKAGES]


def test_an_install_puts_no_package_into_site_packages() -> None:
    files = importlib.metadata.files("breakwater")
    assert files is not None
    names = {Path(str(file)).parts[0] for file in files}
    ours = [name for name in names if name.removesuffix(".py") in {*PACKAGES, "tests", "benchmarks", "examples"}]
    assert ours == []
    assert {name for name in names if not name.startswith("breakwater-")} <= {"_breakwater.pth", ".."}
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for package in PACKAGES:
            assert not (Path(folder) / package).exists()


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_the_command_says_what_it_is_without_loading_the_rest(option: str) -> None:
    loaded = modules_after(
        f"from deploy.cli import main\ntry: main([{option!r}])\nexcept SystemExit as end: assert not end.code"
    )
    assert not loaded.intersection(HEAVY)


def test_the_installed_command() -> None:
    command = Path(sys.executable).parent / "breakwater"
    ended = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout.startswith(f"breakwater {importlib.metadata.version('breakwater')}\n")


def test_both_apps_start_without_torch() -> None:
    """A stock SuperNode imports the ClientApp anew for every message, so import time is paid each time."""
    loaded = modules_after("import server.app, client.app")
    assert not loaded.intersection({"torch", "torchvision", "sklearn"})
    assert {"flwr", "strategies", "tasks", "attacks", "link"} <= loaded


def test_the_client_app_needs_neither_pictures_nor_the_link() -> None:
    assert not modules_after("import client.app").intersection({"torch", "sklearn", "scipy", "matplotlib", "server"})
