"""Every shell, Python and TOML block of README and docs is run by a test; links between pages work."""

import re
from pathlib import Path

import pytest

from experiment.config import parse
from tests.docs.blocks import ROOT, RUN, Block, blocks_of, commands, names_of_tests, pages, read, sources_of
from tests.integration.processes import DIGITS

BLOCKS = [block for page in pages() for block in blocks_of(page)]


def test_every_fence_belongs_to_a_block() -> None:
    assert {"README.md", "docs/tutorial.md", "docs/machines.md"} <= set(pages())
    for page in pages():
        fences = len(re.findall(r"^ *```", read(page), re.MULTILINE))
        assert fences == 2 * len(blocks_of(page)), f"{page}: a fence that opens or ends no block"


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_in_a_language_that_is_run_or_is_output(block: Block) -> None:
    assert block.language in (*RUN, "", "text"), f"{block}: nothing runs {block.language}; output has no language"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "run by"], ids=str)
def test_the_test_that_runs_a_block_exists_and_reads_its_page(block: Block) -> None:
    (where,) = block.words
    if where == ".ci/run":
        lines = (ROOT / where).read_text(encoding="utf-8").splitlines()
        assert all(command in lines for command in commands(block.text)), f"{block}: {where} runs something else"
        return
    file, _, name = where.partition("::")
    assert name in names_of_tests(ROOT / file), f"{block}: there is no {where}"
    page = Path(block.page).name
    assert any(page in text for text in sources_of(ROOT / file)), f"{block}: {file} does not read {page}"


def test_few_blocks_are_not_run_and_each_states_a_reason() -> None:
    unrun = [f"{block}: {block.words[0]}" for block in BLOCKS if block.kind == "not run"]
    assert len(unrun) <= 20, unrun
    for line in unrun:
        for file, name in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", line):
            assert not name or name in names_of_tests(ROOT / file), line
            assert (ROOT / file).exists(), line


def test_no_comment_of_a_block_is_misspelt() -> None:
    for page in pages():
        for comment in re.findall(r"<!-- (.+?) -->", read(page)):
            assert "run" not in comment.split(":")[0] or re.match("(run by|not run|blocks run by): ", comment), comment


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "toml" and b.typed and not b.title], ids=str)
def test_a_config_of_a_page_or_a_part_of_one_loads(block: Block) -> None:
    given = set(re.findall(r"^\[(\w+)\]", block.text, re.MULTILINE))
    rest = [part for part in re.split(r"^(?=\[)", DIGITS, flags=re.MULTILINE) if not part.startswith("\n")]
    parse("".join(part for part in rest if part.partition("]")[0][1:] not in given) + block.text, name=str(block))


@pytest.mark.parametrize("page", pages())
def test_links_of_a_page_lead_to_files_and_headings(page: str) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)]+))?\)", read(page)):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page}: {target}"
        if anchor and path.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{page}: {target}#{anchor}"


@pytest.mark.parametrize("page", pages())
def test_a_python_file_that_a_page_names_exists(page: str) -> None:
    written = {block.title for block in blocks_of(page)}
    named = set(re.findall(r"`((?:\w+/)+\w+\.py)`", read(page)))
    assert {path for path in named - written if not (ROOT / path).exists()} == set()


def slug(heading: str) -> str:
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()))
