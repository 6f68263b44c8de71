"""The examples of CONTRIBUTING.md, put into a copy of the tree as the page says, train federations there."""

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
}
"""By kind, the sections of BASE that become others."""
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
    """A copy of the packages with the page's examples in it, registered as the page says."""
    tree = tmp_path_factory.mktemp("tree")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "docker", "kubernetes"))
    shutil.copyfile(ROOT / "pyproject.toml", tree / "pyproject.toml")
    for block in blocks_of(PAGE):
        if block.title:
            assert not (tree / block.title).exists(), f"{block}: {block.title} is there already"
            (tree / block.title).write_text(block.text, encoding="utf-8")
    config = tree / "experiment" / "config.py"
    text = config.read_text(encoding="utf-8")
    for union, section in re.findall(r"^### [^\n]*: `(\w+)`\n(.*?)(?=^##|\Z)", read(PAGE), re.MULTILINE | re.DOTALL):
        title = re.findall(r'title="(.+?)\.py"', section)[-1]
        (name,) = re.findall(r"^class (\w+).*\n(?:(?!class ).*\n)*?    kind: Literal", section, re.MULTILINE)
        text, found = re.subn(rf"^({union} = Annotated\[\s*)", rf"\1{name} | ", text, flags=re.MULTILINE)
        assert found == 1
        text = text.replace("import tomli_w\n", f"import tomli_w\nfrom {title.replace('/', '.')} import {name}\n")
    config.write_text(text, encoding="utf-8")
    return tree


def ran(tree: Path, *command: str | Path) -> str:
    """Run a command in the tree, where Python finds its packages first; return what it printed."""
    env = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def text_of(*kinds: str) -> str:
    """Return a config with the examples of these kinds in it."""
    changes = {section: keys for kind in kinds for section, keys in EXAMPLES[kind].items()}
    return tomli_w.dumps({**BASE, **changes})


def test_the_examples_train_a_federation(tree: Path, tmp_path: Path) -> None:
    texts = {kind: text_of(kind) for kind in EXAMPLES} | {"all": text_of(*EXAMPLES).replace("200", "3")}
    told = ran(tree, sys.executable, "-c", TRAIN, json.dumps(texts), tmp_path)
    assert all(kind in told for kind in EXAMPLES), "breakwater check explains them"
    for name in texts:
        summary = summary_of(tmp_path / name)
        assert (summary["status"], summary["rejected"]) == ("finished", {}), name
        assert summary["loss"] < 0.6 * summary["start"]["loss"], name
    assert rounds_of(tmp_path / "block-k")[-1]["bytes_up"] < rounds_of(tmp_path / "midrange")[-1]["bytes_up"] / 2


def test_the_examples_pass_the_linter(tree: Path) -> None:
    files = [block.title for block in blocks_of(PAGE) if block.title]
    assert len(files) == 6
    ran(tree, sys.executable, "-m", "ruff", "check", "--no-cache", *files)
    ran(tree, sys.executable, "-m", "ruff", "format", "--no-cache", "--check", *files)
