"""Gathers the site: the pages of docs/, those at the root, the reference, and the files that pages link to.

Pages link to other files by their path in the repository, as readers on a code host need it. In the site, links to
pages point to those pages; for any other file or folder there is a page that shows it.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from docs.make import code_pages, commands_page, config_page

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "build" / "docs"
"""The folder in which pages are gathered."""
AT_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""The pages at the root of the repository, and their names in the site."""
ASSETS = ("style.css", "iframe-worker.js")
LINK = re.compile(r"(?P<before>\]\()(?!https?:|mailto:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)]*)?\)")
LANGUAGES = {".py": "python", ".toml": "toml", ".proto": "protobuf", ".yaml": "yaml", ".yml": "yaml", ".md": "markdown"}


def gather(to: Path, root: Path = ROOT) -> None:
    """Write all pages of the site to a folder, which is emptied first.

    Args:
        to: the folder.
        root: of the checkout.

    Raises:
        FileNotFoundError: a page links to a file that does not exist.
    """
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(root / "docs" / "images", to / "images")
    shown: set[Path] = set()
    for source, name in sources(root):
        write(to / name, linked(source, name, root, shown))
    for path in sorted(shown):
        write(to / file_page(path), shown_file(root, path))
    write(to / "reference" / "config.md", config_page.text())
    write(to / "reference" / "commands.md", commands_page.text())
    for name, text in code_pages.texts(root):
        write(to / "reference" / name, text)
    for name in ASSETS:
        shutil.copyfile(root / "docs" / "make" / name, to / name)


def sources(root: Path = ROOT) -> Iterator[tuple[Path, str]]:
    """Yield each hand-written page, and its name in the site."""
    for name, page in AT_ROOT.items():
        if (root / name).exists():
            yield root / name, page
    for path in sorted((root / "docs").rglob("*.md")):
        yield path, path.relative_to(root / "docs").as_posix()


def linked(source: Path, name: str, root: Path, shown: set[Path]) -> str:
    """Return a page with its links adapted to the site.

    Args:
        source: the page.
        name: its name in the site.
        root: of the checkout.
        shown: collects the files that need a page, relative to ``root``.
    """

    def target(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(source.parent / match["path"])).relative_to(root)
        if not (root / path).exists():
            raise FileNotFoundError(f"{source.relative_to(root)} links to {path}, which does not exist")
        if str(path) in AT_ROOT:
            inside = AT_ROOT[str(path)]
        elif path.parts[0] == "docs" and (root / path).is_file():
            inside = path.relative_to("docs").as_posix()
        else:
            shown.add(path)
            inside = file_page(path)
        return f"{match['before']}{os.path.relpath(inside, Path(name).parent)}{match['anchor'] or ''})"

    return LINK.sub(target, source.read_text(encoding="utf-8"))


def file_page(path: Path) -> str:
    """Return the name of the page that shows a file or folder."""
    return f"files/{path.as_posix()}.md"


def shown_file(root: Path, path: Path) -> str:
    """Return the page that shows a file or a notebook, or lists a folder."""
    head = f"---\ntitle: {path.as_posix()}\nsearch:\n  exclude: true\n---\n\n# `{path.as_posix()}`\n\n"
    file = root / path
    if file.is_dir():
        names = sorted(p.name + "/" * p.is_dir() for p in file.iterdir() if p.name[0] not in "._")
        return head + "".join(f"- `{name}`\n" for name in names)
    text = file.read_text(encoding="utf-8").rstrip("\n")
    if file.suffix == ".ipynb":
        return head.partition("\n# ")[0] + "\n" + notebook(text)
    return f"{head}````` {LANGUAGES.get(file.suffix, 'text')}\n{text}\n`````\n"


def notebook(text: str) -> str:
    """Return the cells of a notebook as Markdown, without outputs."""
    cells = ((cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"])
    return "\n\n".join(f"```python\n{source}\n```" if kind == "code" else source for kind, source in cells) + "\n"


def write(path: Path, text: str) -> None:
    """Write a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
