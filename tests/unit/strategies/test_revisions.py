"""Revisions change when the code that they name changes.

``python -m tests.unit.strategies.test_revisions`` records the present code; it refuses to where a number has stayed.
"""

import ast
import hashlib
import io
import json
import sys
import tokenize
from functools import cache
from pathlib import Path

import pytest

from strategies.revisions import REVISIONS, STREAMS, revision, revisions
from tests.forms import COMPRESSORS, METHODS

ROOT = Path(__file__).parents[3]
RECORDED = Path(__file__).with_name("revisions.json")
SERVERS_OWN = {"strategies.strategy", "strategies.evidence", "strategies.progress", "strategies.deadline"}
"""Modules that no worker runs."""
BOUNDARIES = ("strategies.aggregators", "strategies.compressors")
"""Packages that a method uses and whose code is not its own: rules run at the server, compressors have their numbers."""


@cache
def code_of(module: str) -> tuple[str, frozenset[str]]:
    """Return the code of a module without docstrings, comments and layout, and the modules of ours that it imports."""
    path = ROOT / (module.replace(".", "/") + ".py")
    path = path if path.is_file() else ROOT / module.replace(".", "/") / "__init__.py"
    source = path.read_text(encoding="utf-8")
    tree, imported = ast.parse(source), set[str]()
    lines = source.splitlines(keepends=True)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("strategies"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            inner = {name for name in names if (ROOT / (name.replace(".", "/") + ".py")).is_file()}
            imported |= inner or {node.module}
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines[node.lineno - 1 : node.end_lineno] = ["\n"] * ((node.end_lineno or node.lineno) - node.lineno + 1)
    comments = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT]
    for token in comments:
        row, column = token.start
        lines[row - 1] = lines[row - 1][:column]
    return " ".join("".join(lines).split()), frozenset(imported)


def digest_of(module: str, boundaries: tuple[str, ...] = BOUNDARIES) -> str:
    """Return a digest of the code of a module and of what it imports of ours."""
    seen: set[str] = set()
    waiting = {module}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        waiting |= {m for m in code_of(name)[1] if not m.startswith(boundaries) and m not in SERVERS_OWN} - seen
    whole = "\n".join(f"{name} {code_of(name)[0]}" for name in sorted(seen))
    return hashlib.sha256(whole.encode()).hexdigest()[:16]
