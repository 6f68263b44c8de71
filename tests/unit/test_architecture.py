"""What holds for the folders of code: no import cycles, and every place that lists the folders knows all of them.

The folders are found by looking. A folder that a place leaves out on purpose is named here with the reason.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from docs.make import code_pages
from experiment import code
from tasks import siblings
from tests.deployment.files import DOCKERFILES, copied, ignore_patterns
from tests.packages import EVERY_PACKAGE, PACKAGES, ROOT, cycles, imports, reachable

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NOT_IN_THE_FINGERPRINT = {
    "adapters": "runs in other people's Flower apps, which compare no fingerprints",
    "breakwater": "gives names to what lies in the other folders",
    "attacks": "an attacker runs what it wants; honest clients and the server compute no attack over the network",
    "deploy": "starts processes and takes no part in a round",
    "server": "only the server runs it: a client cannot depend on it",
}
NOT_IN_THE_BUNDLE = {
    "deploy": "the command line, which a Flower run does not start; its configs are in",
}
NOT_IN_THE_REFERENCE = {
    "deploy": "the page of all commands shows it",
    "deploy.commands": "as deploy",
    "deploy.doctor": "as deploy",
    "deploy.sweeps": "as deploy",
}


def folders(patterns: list[str]) -> set[str]:
    """Return the folders whose Python files a bundle includes."""
    return {pattern.split("/")[0] for pattern in patterns if pattern.endswith("/**/*.py")}


def bundle(app: Path) -> list[str]:
    project = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
    patterns: list[str] = project["tool"]["flwr"]["app"]["fab-include"]
    return patterns


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return imports(ROOT, EVERY_PACKAGE)


def test_folders_were_found() -> None:
    assert {"strategies", "link", "server"} <= set(PACKAGES) < set(EVERY_PACKAGE)


@pytest.mark.parametrize("package", EVERY_PACKAGE)
def test_every_folder_with_code_is_a_package(package: str) -> None:
    """One without ``__init__.py`` would be overlooked here, and by most tools."""
    inside = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert [folder for folder in inside if not (folder / "__init__.py").exists()] == []


def test_modules_do_not_import_each_other_in_circles(graph: dict[str, set[str]]) -> None:
    assert cycles(graph) == []


def test_a_circle_is_found_whatever_kind_its_imports_are(tmp_path: Path) -> None:
    texts = {
        "a/__init__.py": "from a import one\n",
        "a/one.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a.two import Two\nimport a\n",
        "a/two.py": "def late():\n    import b.three\n",
        "b/__init__.py": "",
        "b/three.py": "from a import one, other\n",
        "b/alone.py": "from b import three\nimport os\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    graph = imports(tmp_path, ["a", "b"])
    assert cycles(graph) == [["a", "a.one", "a.two", "b.three"]]
    graph["b.three"].clear()
    assert cycles(graph) == []
    assert reachable(graph, "b.alone") == {"b.three"}


def test_the_code_fingerprint_covers_every_folder() -> None:
    assert set(code.FINGERPRINTED) == set(PACKAGES) - set(NOT_IN_THE_FINGERPRINT)


def test_the_bundle_holds_every_folder(graph: dict[str, set[str]]) -> None:
    included = folders(bundle(ROOT))
    assert included == set(PACKAGES) - set(NOT_IN_THE_BUNDLE)
    for app in ("server.app", "client.app"):
        assert {name.split(".")[0] for name in reachable(graph, app)} <= included


def test_what_users_read_imports_breakwater_alone() -> None:
    """Pages and examples; CONTRIBUTING.md is for those who change the code, and the plain loop reads a run's inside."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.*")]
    inside = re.compile(rf"^\s*(?:from|import) (?:{'|'.join(set(PACKAGES) - {'breakwater'})})\b.*", re.MULTILINE)
    texts = {
        page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in pages if "pyc" not in page.name
    }
    found = {name: inside.findall(text) for name, text in texts.items() if inside.search(text)}
    assert found.keys() == {"examples/plain_loop.py"}, found
    allowed = ("from client.coalition ", "from experiment.config ", "from experiment.opened ")
    assert all(line.startswith(allowed) for line in found["examples/plain_loop.py"])


def test_the_image_holds_every_folder() -> None:
    ours, flowers = DOCKERFILES
    assert {source for source, _ in copied(ours)} >= set(PACKAGES)
    assert {pattern[1:] for pattern in ignore_patterns(ours) if pattern.startswith("!")} >= set(PACKAGES)
    assert not {source for source, _ in copied(flowers)} & set(PACKAGES)  # the code comes as a bundle


def test_types_are_checked_in_every_folder() -> None:
    assert set(PROJECT["tool"]["mypy"]["packages"]) == set(EVERY_PACKAGE)


def test_the_layers_hold_every_folder() -> None:
    linted: dict[str, Any] = PROJECT["tool"]["importlinter"]
    assert set(linted["root_packages"]) == set(PACKAGES)
    layers = next(contract["layers"] for contract in linted["contracts"] if contract["type"] == "layers")
    assert {name for layer in layers for name in re.split(r"\s*[|:]\s*", layer)} == set(PACKAGES)


def test_the_reference_shows_every_folder() -> None:
    folders_of_code = {path.parent for name in PACKAGES for path in (ROOT / name).rglob("__init__.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders_of_code}
    assert set(code_pages.PACKAGES) == found - set(NOT_IN_THE_REFERENCE)


def test_no_file_beside_a_custom_task_hides_a_folder() -> None:
    assert set(PACKAGES) == siblings.OURS
