"""The packages of the checkout, found by looking, and which module of ours imports which."""

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
EVERY_PACKAGE = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
TOOLS = {"tests", "benchmarks", "docs"}
"""Packages that only a checkout has."""
PACKAGES = [name for name in EVERY_PACKAGE if name not in TOOLS]
"""The packages of the product."""


def imports(root: Path, packages: Iterable[str]) -> dict[str, set[str]]:
    """Return, for each module of the packages, the modules of the packages that it imports anywhere in its text.

    Late imports and those for type checking count. A module's own packages do not: Python imports them before it.
    """
    files = {}
    for package in packages:
        for path in (root / package).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found = {name: set(_imported(ast.parse(path.read_text(encoding="utf-8")))) for name, path in files.items()}
    return {
        name: {other for other in others & set(files) if not f"{name}.".startswith(f"{other}.")}
        for name, others in found.items()
    }


def _imported(tree: ast.AST) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reachable(graph: Mapping[str, Iterable[str]], start: str) -> set[str]:
    """Return what a module imports, directly or through others; itself only where there is a cycle."""
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph[name]
    return found


def cycles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the groups of modules of which each imports each other one, directly or through others."""
    reach = {name: reachable(graph, name) for name in graph}
    rings = (name for name in graph if name in reach[name])
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in rings}
    return sorted(sorted(group) for group in groups)
