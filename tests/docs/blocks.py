"""The code blocks of README and docs: where they are, and who runs each.

A page's blocks are run by ``test_pages.py``, in the order of the page, unless a comment on the line before says else:

``<!-- run by: tests/x.py::test_y -->``
    That test reads the page and runs the block. ``.ci/run`` stands for what every change must pass.
``<!-- blocks run by: tests/x.py::test_y -->``
    The same of all blocks of the page that have no comment of their own.
``<!-- not run: why -->``
    Nobody can: it needs what no test machine has.
``<!-- terminal NAME -->``, ``<!-- terminal NAME, ends with 137 -->``
    Each of its commands goes on beside what follows, and has ended at the end of the page, with status 0 or as is said.
``<!-- once NAME has ended -->``
    Waits for the end of that terminal.

A block with ``title="FILE"`` is a file that the reader is told to write.
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
        title: the file that it is to be written to, or empty.
        text: what it holds, unindented.
        kind: which of KINDS its comment is, or empty.
        words: what the comment says: the test, the reason, the terminal and its status.
    """

    page: str
    line: int
    language: str
    title: str
    text: str
    kind: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        """Return where it is."""
        return f"{self.page}:{self.line}"

    @property
    def typed(self) -> bool:
        """Whether ``test_pages.py`` runs it, writes it, or starts it."""
        return self.language in RUN and self.kind not in ("run by", "not run")


def pages() -> list[str]:
    """Return the pages, by their paths below the root."""
    return [str(path.relative_to(ROOT)) for pattern in PAGES for path in sorted(ROOT.glob(pattern))]


def read(page: str) -> str:
    """Return the text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> list[Block]:
    """Return the blocks of a page in their order."""
    text = read(page)
    whole = WHOLE_PAGE.search(text)
    blocks = []
    for match in FENCE.finditer(text):
        said = {name: found for name, form in KINDS.items() if (found := form.fullmatch(match["comment"] or ""))}
        if not said and whole:
            said = {"run by": whole}
        kind, words = next(((name, said[name].groups("")) for name in said), ("", ()))
        line = text.count("\n", 0, match.start("indent")) + 1
        body = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        blocks.append(Block(page, line, match["language"], match["title"] or "", body, kind, words))
    return blocks


def commands(text: str) -> list[str]:
    """Return the commands of a block, continued lines joined, comments left out."""
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def names_of_tests(file: Path) -> set[str]:
    """Return the names of the tests of a file, also of those that it takes from another one."""
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
