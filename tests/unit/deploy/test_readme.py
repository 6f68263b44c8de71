"""README and docs are true: their commands parse, the files they link to exist, the catalogue is complete."""

import re
import shlex
from pathlib import Path

import pytest

from deploy.cli import _parser
from experiment.config import (
    AggregatorUnion,
    AttackUnion,
    CompressorUnion,
    PreAggregatorUnion,
    StrategyUnion,
    TaskUnion,
    load,
)
from experiment.problems import keys_of, kinds_of

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
LINKS = re.findall(r"\]\((?!http)([^)#]+)\)", README)


@pytest.mark.parametrize("command", [c for c in COMMANDS if "breakwater" in c])
def test_every_breakwater_command_parses_and_its_config_loads(command: str) -> None:
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    assert words[0] == ".venv/bin/breakwater"
    options = _parser().parse_args(words[1:])
    if isinstance(getattr(options, "config", None), Path):
        load(ROOT / options.config, options.set)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_every_make_target_exists(command: str) -> None:
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("link", LINKS)
def test_every_linked_file_exists(link: str) -> None:
    assert (ROOT / link).exists()


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 110, "it fits two screens; details belong in docs/"


def test_ci_runs_the_test_command_that_contributors_run() -> None:
    assert "\nmake test\n" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_every_file_that_a_page_links_to_exists(page: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


def test_the_docs_name_every_kind_that_a_config_may_name() -> None:
    pages = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("catalogue.md", "tasks.md")}
    for union in (StrategyUnion, AggregatorUnion, PreAggregatorUnion, CompressorUnion, AttackUnion):
        for kind in kinds_of(union):
            assert f"`{kind}`" in pages["catalogue.md"]
    for kind in kinds_of(TaskUnion):
        assert f"`{kind}`" in pages["tasks.md"]


@pytest.mark.parametrize("union", [StrategyUnion, AggregatorUnion, PreAggregatorUnion, CompressorUnion, AttackUnion])
def test_the_catalogue_names_every_key(union: object) -> None:
    catalogue = (ROOT / "docs" / "catalogue.md").read_text(encoding="utf-8")
    shared = {"kind", "pre", "view", "parts"}
    for kind, member in kinds_of(union).items():
        for key in set(keys_of(member)) - shared:
            assert f"`{key}`" in catalogue, (kind, key)
