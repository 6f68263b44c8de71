"""What the wheel's files become: imports of ours below one package, and a refusal of whatever is unclear."""

from pathlib import Path

import pytest

from deploy import wheel
from deploy.wheel import WheelError, rewritten
from tests.packages import PACKAGES, ROOT


def moved(text: str) -> str:
    return rewritten(text, "server/some.py", ROOT)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from link import codec\n", "from breakwater.link import codec\n"),
        ("from link.codec import (\n    a,\n)\n", "from breakwater.link.codec import (\n    a,\n)\n"),
        ("x = 'é'; from   link import codec\n", "x = 'é'; from   breakwater.link import codec\n"),
        ("import link.codec as c\n", "import breakwater.link.codec as c\n"),
        (
            "def f():\n    from tasks.mnist import a  # late\n",
            "def f():\n    from breakwater.tasks.mnist import a  # late\n",
        ),
        ("import os, numpy\nfrom linkage import a\n", "import os, numpy\nfrom linkage import a\n"),
        ('import_module("server.process")\n', 'import_module("breakwater.server.process")\n'),
        ('run("server.app:app")\n', 'run("breakwater.server.app:app")\n'),
        ('x = "strategies.method.Ask"\n', 'x = "breakwater.strategies.method.Ask"\n'),
        # No modules of ours, whatever they look like.
        ('x = "server.log", "tasks", "client.name", "attacks/attack.py"\n',) * 2,
        ('"""See ``link.codec``."""\n',) * 2,
        ("# link.codec\n",) * 2,
        ("from breakwater.tasks import Problem\n",) * 2,
    ],
)
def test_names_of_our_modules_are_changed_where_they_stand(source: str, expected: str) -> None:
    assert moved(source) == expected
    assert source.count("\n") == expected.count("\n")


@pytest.mark.parametrize(
    ("source", "flaw"),
    [
        ("import link\n", "server/some.py:1: `import link` binds 'link'"),
        ("\nimport link.codec\n", "server/some.py:2: `import link.codec` binds 'link'"),
        ("from . import codec\n", "an import by dots"),
        ("from \\\n    link import codec\n", "must be on the line of `from`"),
        ('x = "use link.codec here"\n', "within a longer text"),
        ('x = r"link.codec"\n', "within a longer text"),
        ('x = f"link.codec {y}"\n', "in a formatted text"),
        ('x = f"deploy.commands.{y}"\n', "in a formatted text"),
        ('x = f"deploy.{y}"\n', "in a formatted text"),
        ("import_module(name)\n", "import_module() of a computed name"),
        ("__import__(name)\n", "__import__() of a computed name"),
        ("runpy.run_module(f'{name}')\n", "run_module() of a computed name"),
    ],
)
def test_what_is_unclear_fails_the_build_with_its_place(source: str, flaw: str) -> None:
    with pytest.raises(WheelError) as failed:
        moved(source)
    assert flaw in str(failed.value)
    assert "\n" not in str(failed.value)


def test_every_folder_of_code_is_moved() -> None:
    assert {*wheel.ROOMS, wheel.NAME} == set(PACKAGES)


def test_exceptions_are_for_what_is_there() -> None:
    for where, function in wheel.COMPUTED:
        assert function in (ROOT / where).read_text(encoding="utf-8"), where
    for where in wheel.LEFT_OUT:
        assert (ROOT / where).is_file()
    for pattern in wheel.DATA:
        assert list(ROOT.glob(pattern)), pattern


def test_a_folder_whose_init_has_code_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "breakwater").mkdir()
    (tmp_path / "tasks").mkdir()
    (tmp_path / "breakwater" / "tasks.py").write_text("", encoding="utf-8")
    (tmp_path / "tasks" / "__init__.py").write_text('"""Text."""\n', encoding="utf-8")
    (tmp_path / "out").mkdir()
    wheel.lay_out(tmp_path, tmp_path / "out", "1")
    (tmp_path / "tasks" / "__init__.py").write_text('"""Text."""\nx = 1\n', encoding="utf-8")
    with pytest.raises(WheelError, match=r"tasks/__init__\.py: has code, but the wheel replaces it"):
        wheel.lay_out(tmp_path, tmp_path / "out", "1")


def test_this_checkout_can_be_laid_out(tmp_path: Path) -> None:
    wheel.lay_out(ROOT, tmp_path / "out", "1")
    assert (tmp_path / "out" / "strategies" / "method.py").is_file()
