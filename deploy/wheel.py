"""Builds the wheel: everything below one package, ``breakwater``, so that nothing of ours gets in anybody's way.

A checkout has its folders side by side (``strategies``, ``server``, ...), as a Flower App Bundle needs them. The wheel
has them inside ``breakwater``. Hatch runs this file by its path when a wheel is built; an editable install stays with
the checkout. Each Python file is copied with the names of our modules changed where its syntax tree has them, so line
numbers and comments stay:

- in import statements;
- in text that is the name of a module of ours and nothing else, ``"server.process"``, wherever it is used: for what the
  fork server loads, for a late import, for ``python -m``.

What cannot be classified fails the build with its place: an import that binds the name of a folder (``import link``), a
module's name within a longer text, an import of a computed name. ``wheel.json`` keeps digests of each file before and
after, so that a wheel can prove that it runs the code of a checkout (``foundation.origin``).
"""

import ast
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAME = "breakwater"
"""The package; also the folder of the checkout whose files lie directly in it."""
ROOMS = (
    *("foundation", "strategies", "attacks", "tasks", "experiment", "link", "adapters"),
    *("server", "client", "deploy"),
)
"""The folders of the checkout that are moved below it."""
MANIFEST = "wheel.json"
LEFT_OUT = ("deploy/wheel.py",)
"""Python files that only a checkout needs."""
DATA = ("breakwater/py.typed", "link/link_pb2.pyi", "deploy/configs/*.toml", "examples/my_task.py")
"""What else is in the wheel."""

COMPUTED = {
    ("breakwater/__init__.py", "import_module"): "of names that are written out in the same file",
    ("breakwater/runs.py", "import_module"): "of other packages",
    ("deploy/doctor/examine.py", "import_module"): "of names that are written out in the same file",
    ("server/monitor/exporters.py", "find_spec"): "of other packages",
    ("tasks/siblings.py", "__import__"): "of users' modules",
    ("tasks/siblings.py", "find_spec"): "of users' modules",
}
"""Imports of computed names, by file and function, and why they are none of ours or need no change."""

_IMPORTERS = {"__import__", "import_module", "find_spec", "run_module", "run_path", "spec_from_file_location"}
_NAMED = re.compile(rf"(?<![\w./-])(?:{'|'.join(ROOMS)})(?:\.\w+)+")
_HALF = re.compile(rf"(?<![\w./-])(?:{'|'.join(ROOMS)})\.$")


class WheelError(Exception):
    """A file that cannot be moved; one line with its place and what to change."""


class _Edit(NamedTuple):
    """Text that comes in at a line and a byte of it."""

    line: int
    column: int


def rewritten(source: str, where: str, checkout: Path) -> str:
    """Return a Python file as the wheel has it.

    Args:
        source: the file.
        where: its path in the checkout.
        checkout: the folder.

    Raises:
        WheelError: something in it cannot be classified.
    """
    raw = [line.encode() for line in source.splitlines(keepends=True)]
    tree = ast.parse(source)
    for edit in sorted(_edits(tree, raw, where, checkout), reverse=True):
        line = raw[edit.line - 1]
        raw[edit.line - 1] = line[: edit.column] + f"{NAME}.".encode() + line[edit.column :]
    return b"".join(raw).decode()


def _edits(tree: ast.AST, raw: list[bytes], where: str, checkout: Path) -> Iterator[_Edit]:
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    pieces = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), level=0) if _top(module) in ROOMS:
                at = raw[node.lineno - 1].find(module.encode(), node.col_offset + len("from"))
                if at < 0:
                    raise _unclear(where, node, "the name of the module must be on the line of `from`")
                yield _Edit(node.lineno, at)
            case ast.ImportFrom(level=level) if level:
                raise _unclear(where, node, "an import by dots; write the whole name")
            case ast.Import(names=names):
                for alias in names:
                    if _top(alias.name) in ROOMS:
                        if alias.asname is None:
                            fix = f"`import {alias.name}` binds {_top(alias.name)!r}; use `from ... import ...`"
                            raise _unclear(where, node, fix)
                        yield _Edit(alias.lineno, alias.col_offset)
            case ast.Call() if (name := _called(node)) in _IMPORTERS:
                given = node.args[0] if node.args else None
                constant = isinstance(given, ast.Constant) and isinstance(given.value, str)
                if not constant and (where, name) not in COMPUTED:
                    raise _unclear(where, node, f"{name}() of a computed name; write it out, or list it in COMPUTED")
            case ast.Constant(value=str(text)) if id(node) not in prose:
                named = [found[0] for found in _NAMED.finditer(text) if _is_module(found[0], checkout)]
                if id(node) in pieces and (named or _HALF.search(text)):
                    raise _unclear(where, node, f"a module's name in a formatted text: {text!r}")
                if not named:
                    continue
                start = raw[node.lineno - 1][node.col_offset :]
                if text.partition(":")[0] != named[0] or start[:1] not in b"\"'" or start[1:2] != text[:1].encode():
                    raise _unclear(where, node, f"a module's name within a longer text: {text!r}")
                yield _Edit(node.lineno, node.col_offset + 1)


def _top(name: str) -> str:
    return name.partition(".")[0]


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _is_module(name: str, checkout: Path) -> bool:
    """Return whether a dotted name is a module of ours, or something in one."""
    parts = name.split(".")
    places = [checkout.joinpath(*parts[:count]) for count in range(2, len(parts) + 1)]
    return any(place.with_suffix(".py").is_file() or (place / "__init__.py").is_file() for place in places)


def _unclear(where: str, node: ast.expr | ast.stmt, what: str) -> WheelError:
    return WheelError(f"{where}:{node.lineno}: {what}")


def lay_out(checkout: Path, out: Path, version: str) -> None:
    """Write the package.

    Args:
        checkout: the folder of the sources.
        out: an empty folder, which becomes the package.
        version: of the release, for the manifest.

    Raises:
        WheelError: a file cannot be moved.
    """
    digests: dict[str, tuple[str, str]] = {}
    for room in (*ROOMS, NAME):
        for path in sorted((checkout / room).rglob("*.py")):
            where = path.relative_to(checkout).as_posix()
            if where in LEFT_OUT:
                continue
            inside = where.removeprefix(f"{NAME}/")
            if room == NAME and Path(inside).stem in ROOMS:
                # The catalogue's module of a folder's name is the folder's own, which says nothing else.
                inside = f"{Path(inside).stem}/__init__.py"
                _check_bare(checkout / inside, checkout)
                source, path = path.read_bytes(), checkout / inside
            else:
                source = path.read_bytes()
            installed = rewritten(source.decode(), where, checkout).encode()
            target = out / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(installed)
            digests[inside] = _digest(path.read_bytes()), _digest(installed)
    for pattern in DATA:
        for path in sorted(checkout.glob(pattern)):
            where = path.relative_to(checkout).as_posix()
            inside = where.removeprefix(f"{NAME}/")
            text = path.read_text(encoding="utf-8")
            target = out / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(rewritten(text, where, checkout) if path.suffix == ".pyi" else text, encoding="utf-8")
            if path.suffix == ".py":
                digests[inside] = _digest(path.read_bytes()), _digest(target.read_bytes())
    made = {"version": version, "files": dict(sorted(digests.items()))}
    (out / MANIFEST).write_text(json.dumps(made, indent=0) + "\n", encoding="utf-8")


def _check_bare(path: Path, checkout: Path) -> None:
    body = ast.parse(path.read_bytes()).body
    if not all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body):
        where = path.relative_to(checkout).as_posix()
        raise WheelError(f"{where}: has code, but the wheel replaces it by {NAME}/{path.parent.name}.py")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class WheelHook(BuildHookInterface[Any]):
    """What Hatch calls."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Lay out the package for a wheel; leave an editable install alone."""
        if version == "editable":
            return
        self._folder = tempfile.mkdtemp()
        package = Path(self._folder) / NAME
        package.mkdir()
        lay_out(Path(self.root), package, self.metadata.version)
        build_data["force_include"][str(package)] = NAME

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was laid out."""
        shutil.rmtree(getattr(self, "_folder", ""), ignore_errors=True)
