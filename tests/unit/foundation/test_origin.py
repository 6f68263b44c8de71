"""Where the code lies, and whether a wheel's is as it was built."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import pytest

from foundation import origin

INSTALLED = {"tasks/one.py": "import breakwater.link.codec\n", "link/two.py": "", "__init__.py": ""}
SOURCES = {"tasks/one.py": "import link.codec\n", "link/two.py": "", "__init__.py": ""}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package as a wheel of version 9.8 installs it."""
    for name, text in INSTALLED.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    files = {name: [digest(SOURCES[name]), digest(text)] for name, text in INSTALLED.items()}
    (tmp_path / origin.MANIFEST).write_text(json.dumps({"version": "9.8", "files": files}), encoding="utf-8")
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    monkeypatch.setattr(origin, "manifest", origin.manifest.__wrapped__)
    return tmp_path


def test_a_checkout_has_the_digests_of_what_is_there_and_its_installed_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    monkeypatch.setattr(origin, "manifest", origin.manifest.__wrapped__)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "one.py").write_text("x = 1\n", encoding="utf-8")
    assert origin.sources(["tasks"]) == ({"tasks/one.py": digest("x = 1\n")}, False)
    assert origin.release() == version("breakwater")


def test_a_wheel_has_the_digests_and_the_version_of_what_it_was_built_from(wheel: Path) -> None:
    assert origin.sources(["tasks", "link"]) == ({name: digest(SOURCES[name]) for name in sorted(SOURCES)[1:]}, False)
    assert not origin.sources([""]).modified
    assert origin.release() == "9.8"


@pytest.mark.parametrize("change", ["another text", "a file more", "a file less"])
def test_a_wheel_whose_files_were_changed_says_so(wheel: Path, change: str) -> None:
    if change == "another text":
        (wheel / "tasks" / "one.py").write_text("import breakwater.link.codec\n\n", encoding="utf-8")
    elif change == "a file more":
        (wheel / "tasks" / "more.py").write_text("", encoding="utf-8")
    else:
        (wheel / "tasks" / "one.py").unlink()
    found = origin.sources(["tasks", "link"])
    assert found.modified
    assert found.digests.get("tasks/one.py") != digest(SOURCES["tasks/one.py"])
    assert origin.sources([""]).modified
    assert not origin.sources(["link"]).modified


def test_what_a_peer_says_of_its_code_is_one_short_line() -> None:
    assert origin.named("0.1.0", "0123456789ab") == "0.1.0 (0123456789ab)"
    assert origin.named("", None) == "unknown version (unknown code)"
    assert "\n" not in origin.named("a\nb", "c\x1b[2J")
    assert len(origin.named("x" * 500, "y" * 500)) < 150
