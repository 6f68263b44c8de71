"""A custom task's file may import what lies beside it, and nobody else gets to see that."""

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks import siblings
from tasks.contract import Setting, TaskError
from tasks.custom import CustomTask


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path = path.parent / f"{path.name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "task.py"


def run(file: Path) -> Any:
    return siblings.run(file, {})


@pytest.mark.parametrize(
    "statement",
    [
        "from net import make",
        "import net; make = net.make",
        "from .net import make",
        "from . import net; make = net.make",
        "from nets import make",
        "from nets.deep import make",
        "import nets.deep; make = nets.deep.make",
        "import nets.deep as deep; make = deep.make",
        "from spaces.inner import make",
        "make = __import__('net').make",
    ],
)
def test_modules_and_packages_beside_the_file_are_found(tmp_path: Path, statement: str) -> None:
    task = write(
        tmp_path,
        task=f"{statement}\nmade = make()\n",
        net="def make(): return 7\n",
        nets____init__="",
        spaces__inner="def make(): return 7\n",
    )
    write(tmp_path, nets__deep="from net import make\n")
    (tmp_path / "nets" / "__init__.py").write_text("from .deep import make\n", encoding="utf-8")
    before = sys.path.copy()
    assert run(task).made == 7
    assert sys.path == before
    assert not {"net", "nets", "spaces"} & sys.modules.keys()


def test_a_method_that_imports_later_finds_them_too(tmp_path: Path) -> None:
    digests: dict[str, str] = {}
    task = write(tmp_path, task="def late():\n    from net import seven\n    return seven\n", net="seven = 7\n")
    module: Any = siblings.run(task, digests)
    assert digests.keys() == {"task.py"}
    assert module.late() == 7
    assert digests.keys() == {"task.py", "net.py"}


def test_siblings_of_the_same_name_do_not_mix(tmp_path: Path) -> None:
    text = "from net import name\ndef late():\n    import net, deep.er\n    return net.name + deep.er.name\n"
    one, two = (
        run(write(tmp_path / name, task=text, net=f"name = {name!r}\n", deep__er=f"name = {name!r}\n"))
        for name in ("one", "two")
    )
    assert (one.name, two.name, one.late(), two.late()) == ("one", "two", "oneone", "twotwo")


def test_a_file_that_has_changed_is_run_as_it_is_now(tmp_path: Path) -> None:
    task = write(tmp_path, task="from net import n\n", net="n = 1\n")
    assert run(task).n == 1
    write(tmp_path, net="n = 2\n")  # as long as before, within the same second
    assert run(task).n == 2


def test_the_products_packages_and_other_peoples_libraries_stay_what_they_are(tmp_path: Path) -> None:
    names = ("server", "tasks", "link", "strategies", "client", "queue", "json")
    task = write(
        tmp_path,
        task="import server, tasks.contract, strategies.method, link, foundation.errors, json, queue\n"
        "import concurrent.futures.thread as other\n",
        **dict.fromkeys(names, "mine = True\n"),
    )
    module = run(task)
    assert [hasattr(getattr(module, name), "mine") for name in ("server", "tasks", "link", "strategies")] == [False] * 4
    assert module.json.mine  # as for a script: the task's own file asked for it
    assert module.queue.mine
    assert not hasattr(module.other.queue, "mine")
    import queue

    assert not hasattr(queue, "mine")


def test_objects_of_siblings_can_be_pickled_in_this_process_and_its_forks(tmp_path: Path) -> None:
    text = "from dataclasses import dataclass\n@dataclass\nclass Point:\n    x: int\n"
    module = run(write(tmp_path, task=f"from net import Point\n{text.replace('Point', 'Own')}", net=text))
    for made in (module.Point(3), module.Own(4)):
        assert pickle.loads(pickle.dumps(made)) == made  # noqa: S301  # ours


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({"task": "from net import make\n", "net": "\n1 / 0\n"}, "net.py, line 2: ZeroDivisionError: division by zero"),
        ({"task": "from net import make\n", "net": "\n\nx = (\n"}, "net.py, line 3: SyntaxError"),
        (
            {"task": "from net import make\n", "net": "pass\n"},
            "task.py, line 1: ImportError: cannot import name 'make'",
        ),
        ({"task": "from ..net import make\n"}, "task.py, line 1: ImportError: attempted relative import beyond"),
        ({"task": "import net\n"}, "task.py, line 1: ModuleNotFoundError: No module named 'net'"),
    ],
)
def test_a_mistake_in_a_sibling_is_one_line_with_its_place(tmp_path: Path, files: dict[str, str], word: str) -> None:
    write(tmp_path, **files)
    with pytest.raises(TaskError) as error:
        CustomTask(path="task.py:Own").load(Setting(clients=2, config_dir=tmp_path))
    assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_words_that_toml_takes_for_numbers_reach_a_class_that_wants_strings(tmp_path: Path) -> None:
    text = "class Own:\n    def __init__(self, how='mean', way: str = None, *, size=1.0, deep=None):\n"
    text += "        raise ValueError(repr((how, way, size, deep)))\n"
    write(tmp_path, task=text)
    nan, inf = float("nan"), float("-inf")
    options = {"how": nan, "way": inf, "size": nan, "deep": [{"a": inf}]}
    with pytest.raises(TaskError) as error:
        CustomTask(path="task.py:Own", options=options).load(Setting(clients=2, config_dir=tmp_path))
    assert "('nan', '-inf', nan, [{'a': -inf}])" in str(error.value)
