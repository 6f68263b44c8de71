"""The examples of CONTRIBUTING.md train federations in a copy of the tree, registered as the page describes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from tests.docs.blocks import ROOT, blocks_of, read
from tests.integration.processes import rounds_of, summary_of
from tests.packages import PACKAGES

pytestmark = pytest.mark.slow

PAGE = "CONTRIBUTING.md"
BASE: dict[str, dict[str, Any]] = {
    "federation": {"clients": 5, "byzantine": 1, "seed": 1},
    "task": {"kind": "digits", "model": "softmax"},
    "strategy": {"kind": "robust-sgd", "rounds": 40, "gamma": 0.5, "batch": 32},
    "aggregator": {"kind": "cm"},
    "attack": {"kind": "bf"},
    "evaluation": {"every": 40},
}
EXAMPLES: dict[str, dict[str, dict[str, Any]]] = {
    "midrange": {"aggregator": {"kind": "midrange"}},
    "block-k": {"compressor": {"kind": "block-k", "k": 200}, "aggregator": {"kind": "rfa"}},
    "spike": {"attack": {"kind": "spike", "size": 2.0}},
    "points": {"task": {"kind": "points", "size": 5}},
    "normalised-sgd": {"strategy": {**BASE["strategy"], "kind": "normalised-sgd"}},
    "heavy-ball": {"strategy": {"kind": "heavy-ball", "rounds": 40, "gamma": 0.5}},
}
"""The sections of BASE that each example replaces, by kind."""
TRAIN = """
import json, sys
from pathlib import Path
from deploy.inprocess import run_in_process
from deploy.local import LocalOptions
from experiment.config import parse
from experiment.explain import explain

for name, text in json.loads(sys.argv[1]).items():
    print(*explain(parse(text), None, None))
    run_in_process(LocalOptions(config=parse(text), out=Path(sys.argv[2]) / name, silent=True))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with the page's examples in it, registered as the page describes."""
    tree = tmp_path_factory.mktemp("tree")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "docker", "kubernetes"))
    shutil.copyfile(ROOT / "pyproject.toml", tree / "pyproject.toml")
    for block in blocks_of(PAGE):
        if block.title:
            assert not (tree / block.title).exists(), f"{block}: {block.title} is there already"
            (tree / block.title).write_text(block.text, encoding="utf-8")
    for table, section in re.findall(r"^### [^\n]*: `(\w+)`\n(.*?)(?=^##|\Z)", read(PAGE), re.MULTILINE | re.DOTALL):
        modules = re.findall(r'title="(.+?)\.py"', section)
        names = re.findall(r"^class (\w+).*\n(?:(?!class ).*\n)*?    kind: (?:Literal|ClassVar)", section, re.MULTILINE)
        for module, name in zip(modules, names, strict=True):
            register(tree, table, module.replace("/", "."), name)
    return tree


def register(tree: Path, table: str, module: str, name: str) -> None:
    """Add a class to its table: import it there, and name it on one line."""
    path = tree / ("strategies/methods.py" if table == "METHODS" else "experiment/config.py")
    text = path.read_text(encoding="utf-8")
    if table == "METHODS":
        text, found = re.subn(r"^(METHODS: .* = \()", rf"\1{name}, ", text, flags=re.MULTILINE)
    else:
        text, found = re.subn(rf"^({table} = Annotated\[\s*)", rf"\1{name} | ", text, flags=re.MULTILINE)
    assert found == 1, table
    text, found = re.subn(
        r"^(from (?:strategies|attacks))", rf"from {module} import {name}\n\1", text, count=1, flags=re.M
    )
    assert found == 1
    path.write_text(text, encoding="utf-8")


def ran(tree: Path, *command: str | Path) -> str:
    """Run a command in the tree, with its packages first on Python's path; return its output."""
    env = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def text_of(*kinds: str) -> str:
    """Return a config that uses the examples of these kinds."""
    changes = {section: keys for kind in kinds for section, keys in EXAMPLES[kind].items()}
    return tomli_w.dumps({**BASE, **changes})


def test_the_examples_train_a_federation(tree: Path, tmp_path: Path) -> None:
    texts = {kind: text_of(kind) for kind in EXAMPLES} | {"all": text_of(*EXAMPLES).replace("200", "3")}
    output = ran(tree, sys.executable, "-c", TRAIN, json.dumps(texts), tmp_path)
    assert all(kind in output for kind in EXAMPLES), "breakwater check explains them"
    for name in texts:
        summary = summary_of(tmp_path / name)
        assert (summary["status"], summary["rejected"]) == ("finished", {}), name
        assert summary["loss"] < 0.6 * summary["start"]["loss"], name
    assert rounds_of(tmp_path / "block-k")[-1]["bytes_up"] < rounds_of(tmp_path / "midrange")[-1]["bytes_up"] / 2


def test_a_method_takes_fewer_than_sixty_lines_its_config_included() -> None:
    files = [block for block in blocks_of(PAGE) if re.fullmatch(r"strategies/\w+\.py", block.title)]
    methods = {file.title: len(file.text.splitlines()) for file in files}
    assert methods.keys() == {"strategies/normalised_sgd.py", "strategies/heavy_ball.py"}
    assert max(methods.values()) < 60, methods


def test_the_examples_pass_the_linter(tree: Path) -> None:
    files = [block.title for block in blocks_of(PAGE) if block.title]
    assert len(files) == 6
    ran(tree, sys.executable, "-m", "ruff", "check", "--no-cache", *files)
    ran(tree, sys.executable, "-m", "ruff", "format", "--no-cache", "--check", *files)
