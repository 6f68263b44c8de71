"""The commands of the pages work: their blocks are run in order, in a folder that looks like a fresh checkout."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, SHELL, Block, blocks_of, commands, pages
from tests.integration.fork_server import ForkServer
from tests.integration.processes import SOON_S, Process, free_address

pytestmark = pytest.mark.slow

COMMAND = ".venv/bin/breakwater"
PLAIN = re.compile(r"[^$|&;<>()`*?#\n]+")
"""A command line that needs no shell."""
MADE_BY_READERS = ("runs", "certs", "mine", "site", "build", "dist")
"""Folders that a used checkout has, but a fresh one has not."""


def checkout(folder: Path) -> Path:
    """Make a folder look like a fresh checkout in which ``make setup`` has run."""
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name not in MADE_BY_READERS:
            (folder / path.name).symlink_to(path)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


class Reader:
    """Types the blocks of one page.

    Args:
        nursery: starts the commands.
        folder: the checkout to run them in.
    """

    def __init__(self, fork_server: ForkServer, folder: Path) -> None:
        self._fork_server = fork_server
        self._folder = folder
        self._home = folder / "home"
        self._home.mkdir()
        self._here = ("env", "-C", folder, f"HOME={self._home}")
        self._port = free_address().rpartition(":")[2]
        self._terminals: list[tuple[str, Process, int]] = []

    def type(self, block: Block) -> None:
        """Type one block, and wait for its end unless it is for a separate terminal."""
        text = re.sub(r"\bSERVER\b", "localhost", block.text.replace(":9090", f":{self._port}"))
        if block.title:
            self._write(block.title, text)
        elif block.language == "python":
            self._fork_server.start(*self._here, sys.executable, "-c", text).ends(0, 2 * SOON_S)
        elif block.language == SHELL and block.kind == "terminal":
            name, status = block.words
            for line in commands(text):
                self._terminals.append((name, self._start(line), int(status or 0)))
        elif block.language == SHELL:
            if block.kind == "once":
                for name, process, ends_with in self._terminals:
                    if name == block.words[0]:
                        process.ends(ends_with, 3 * SOON_S)
            for line in self._lines(text):
                self._start(line).ends(0, 3 * SOON_S)

    def close(self) -> None:
        """Wait for the end of all terminals, the last one first: a client that is refused ends at once."""
        for _, process, status in reversed(self._terminals):
            process.ends(status, 3 * SOON_S)

    def _write(self, title: str, text: str) -> None:
        path = self._folder / title
        path.parent.mkdir(parents=True, exist_ok=True)
        assert path.parent.resolve().is_relative_to(self._folder.resolve()), f"{title} would be in the checkout"
        path.write_text(text, encoding="utf-8")

    def _lines(self, text: str) -> list[str]:
        """Return the lines to type one by one; a block that needs one shell is a single line."""
        lines = commands(text)
        return lines if all(line[0] not in " \t" and not line.endswith("do") for line in lines) else [text]

    def _start(self, line: str) -> Process:
        words = shlex.split(line) if PLAIN.fullmatch(line) else []
        settings = [word for word in words if re.match(r"[A-Z_]+=", word)]
        if words[len(settings) : len(settings) + 1] != [COMMAND]:
            return self._fork_server.start(*self._here, "bash", "-euc", line)
        environment = dict(word.split("=", 1) for word in settings)
        prelude = f"import os; os.chdir({str(self._folder)!r}); os.environ.update({environment!r})"
        return self._fork_server.breakwater(*words[len(settings) + 1 :], prelude=prelude)


@pytest.mark.parametrize("page", [page for page in pages() if any(block.typed for block in blocks_of(page))])
def test_the_commands_of_a_page_work(page: str, fork_server: ForkServer, tmp_path: Path) -> None:
    reader = Reader(fork_server, checkout(tmp_path))
    for block in blocks_of(page):
        if block.typed:
            reader.type(block)
    reader.close()
