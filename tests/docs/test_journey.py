"""docs/journey.md is true: it shows the plain loop as it is, and names functions that exist."""

import ast
import re
import textwrap

import pytest

from tests.docs.blocks import ROOT, blocks_of, read

PAGE = "docs/journey.md"
ROWS = re.findall(r"^\| (.+?) \| \[.+?\]\(\.\./(\S+\.py)\) \| `(\w+)` \|$", read(PAGE), re.MULTILINE)


def test_the_page_shows_the_plain_loop_as_it_is() -> None:
    (block,) = [block for block in blocks_of(PAGE) if block.language == "python"]
    (file,) = set(re.findall(r"\(\.\./(\S*plain_loop\.py)\)", read(PAGE)))
    assert textwrap.indent(block.text, "    ") in (ROOT / file).read_text(encoding="utf-8")


def test_every_step_of_the_round_is_in_the_table() -> None:
    assert len(ROWS) >= 20
    assert {step[:2] for step, _, _ in ROWS} >= {"1.", "2.", "3.", "4.", "5.", "6."}


@pytest.mark.parametrize(("file", "function"), [(file, function) for _, file, function in ROWS])
def test_a_function_that_the_table_names_exists(file: str, function: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert function in {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
