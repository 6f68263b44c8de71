"""The code blocks of README and docs: where they are, and which test runs each.

``test_pages.py`` runs the blocks of a page in their order, unless a comment on the line before it states otherwise:

``<!-- run by: tests/x.py::test_y -->``
    That test reads the page and runs the block. ``.ci/run`` is the check that every change must pass.
``<!-- blocks run by: tests/x.py::test_y -->``
    The same for all blocks of the page without a comment.
``<!-- not run: why -->``
    No test runs it: it needs something that no test machine has.
``<!-- terminal NAME -->``, ``<!-- terminal NAME, ends with 137 -->``
    Its commands run in the background and must have ended at the end of the page, with status 0 or the given one.
``<!-- once NAME has ended -->``
    Wait for the end of that terminal first.

A block with ``title="FILE"`` is a file that the reader writes.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**/*.md")
SHELL, RUN = "sh", ("sh", "python", "toml")
"""The language of commands; the languages that tests run. Blocks without one show output."""
FENCE = re.compile(
    r"(?:^ *<!-- (?P<comment>[^\n]+?) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
WHOLE_PAGE = re.compile(r"^<!-- blocks run by: (\S+) -->$", re.MULTILINE)
KINDS = {
    "run by": re.compile(r"run by: (\S+)"),
    "not run": re.compile(r"not run: (.{20,})"),
    "terminal": re.compile(r"terminal (\w+)(?:, ends with (\d+))?"),
    "once": re.compile(r"once (\w+) has ended"),
}


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Args:
        page: path of the page below the root.
        line: of its fence, from 1.
        language: of the fence; empty for output.
        title: the file to write it to, or empty.
        text: its content, unindented.
        kind: which of KINDS its comment is, or empty.
        words: the arguments of the comment: the test, the reason, the terminal and its status.
    """

    page: str
    line: int
    language: str
    title: str
    text: str
    kind: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def typed(self) -> bool:
        """Whether ``test_pages.py`` runs it, writes it, or starts it."""
        return self.language in RUN and self.kind not in ("run by", "not run")


def pages() -> list[str]:
    """Return the paths of all pages, relative to the root."""
    return [str(path.relative_to(ROOT)) for pattern in PAGES for path in sorted(ROOT.glob(pattern))]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> list[Block]:
    text = read(page)
    whole = WHOLE_PAGE.search(text)
    blocks = []
    for match in FENCE.finditer(text):
        found = {name: given for name, form in KINDS.items() if (given := form.fullmatch(match["comment"] or ""))}
        if not found and whole:
            found = {"run by": whole}
        kind, words = next(((name, found[name].groups("")) for name in found), ("", ()))
        line = text.count("\n", 0, match.start("indent")) + 1
        body = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        blocks.append(Block(page, line, match["language"], match["title"] or "", body, kind, words))
    return blocks


def commands(text: str) -> list[str]:
    """Return the commands of a block, with continued lines joined and without comments."""
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def names_of_tests(file: Path) -> set[str]:
    """Return the names of the tests of a file, including imported ones."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            found |= {name.asname or name.name for name in node.names}
    return {name for name in found if name.startswith("test_")}


def sources_of(file: Path) -> Iterator[str]:
    """Yield the text of a test file and of the helpers in tests/ that it imports."""
    text = file.read_text(encoding="utf-8")
    yield text
    for module in re.findall(r"^from (tests\.[\w.]+) import", text, re.MULTILINE):
        helper = ROOT / (module.replace(".", "/") + ".py")
        if helper.exists():
            yield helper.read_text(encoding="utf-8")
